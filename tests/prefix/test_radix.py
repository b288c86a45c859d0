"""The radix tree of kept prefixes: what it finds, what it holds, what leaves it."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay_hf.cache_utils import LayerKV, LayerState, PrefixKV
from relay_hf.cache_utils.state_layer import RecurrentState
from relay_hf.kernels.segment import Segment
from relay_hf.prefix import Planned, PrefixEntry
from relay_hf.prefix.radix import RadixTree
from tests.support.kept_bytes import held_bytes

CONTEXT = "here"
TOKEN = 2 * 3 * 4 + 8 + 2 * 4  # bytes of a token: key and value of one head of three float32; its id, its embedding


def tensor_of(ids):
    """Keys that say which token they belong to, and where."""
    return torch.stack([ids.float(), torch.arange(len(ids)).float(), ids.float().cumsum(0)], dim=1)[None]


def run_of(ids, start=0, recurrent=False):
    """A run of the last tokens of `ids`, as if a model had prefilled them."""
    key = tensor_of(ids)[:, start:].clone()
    state = RecurrentState({}, {0: ids.sum()[None].float()}) if recurrent else None
    kv = LayerKV(Segment(key, value := key.clone()), (key, value))
    return PrefixKV(start, len(ids) - start, (LayerState(kv, state),))


def tokens(*ids):
    return torch.tensor(ids, dtype=torch.int64)


def add(store, ids, start=0, recurrent=False, pinned=False, **options):
    samples = torch.zeros(len(ids) - start, 2)
    entry = PrefixEntry(ids, run_of(ids, start, recurrent), samples, pinned=pinned)
    return store.add(entry, CONTEXT, **options)


def held(store, ids):
    """The keys that the store gives for the start of `ids`."""
    match = store.match(ids, CONTEXT)
    parts = [run.layers[0].kv.segment.key for run in match.runs(0, match.length)]
    return torch.cat(parts, dim=1) if parts else torch.zeros(1, 0, 3)


words = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda ids: tokens(*ids))


class AgainstAListOfPrefixes(RuleBasedStateMachine):
    """Whatever is added, used, pinned and evicted, in any order: a match is the longest start, with its own keys."""

    def __init__(self):
        super().__init__()
        self.store = RadixTree(budget=30 * TOKEN)
        self.pinned = []

    @rule(ids=words, pin=st.booleans())
    def add(self, ids, pin):
        start = self.store.match(ids, CONTEXT).length if len(self.store) % 2 else 0
        kept = add(self.store, ids, start)
        if kept is not None:
            assert kept.ids.tolist() == ids.tolist()
            kept.pinned = kept.pinned or pin
            self.pinned += [ids.tolist()] if pin else []

    @rule(ids=words, most=st.integers(0, 6))
    def add_what_fits(self, ids, most):
        run = run_of(ids)
        before = self.store.match(ids, CONTEXT).seen
        kept = self.store.add(PrefixEntry(ids, run, torch.zeros(len(ids), 2)), CONTEXT, most=most * TOKEN)
        if kept is not None:
            assert before <= len(kept) <= before + most or len(kept) == before
            for held in kept.run.layers[0].kv.tensors():
                assert held.data_ptr() not in {t.data_ptr() for t in run.layers[0].kv.tensors()}

    @rule(ids=words, cuts=st.sets(st.integers(1, 11)))
    def load(self, ids, cuts):
        """In parts, each behind the one before: as a whole, and all of it or nothing."""
        ends = [*sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
        starts = [0, *ends[:-1]]
        parts = list(zip(starts, ends, strict=True))
        planned = [
            Planned(ids[start:end], end - start, (end - start) * TOKEN, place - 1 if place else None)
            for place, (start, end) in enumerate(parts)
        ]
        short = self.store.lacks([Planned(ids, len(ids), len(ids) * TOKEN)], CONTEXT)
        before = outline(self.store)
        assert self.store.lacks(planned, CONTEXT) == short
        assert self.store.lacks(planned, CONTEXT, make_room=True) == short
        if short:
            assert outline(self.store) == before
            return
        kept = None
        for start, end in parts:
            run, looks = run_of(ids[:end], start), torch.zeros(end - start, 2)
            kept = self.store.add(PrefixEntry(ids[start:end], run, looks), CONTEXT, join=False, behind=kept)
            assert kept.ids.tolist() == ids[:end].tolist()

    @rule(ids=words)
    def use(self, ids):
        self.store.touch(self.store.match(ids, CONTEXT))

    @rule(ids=words)
    def match(self, ids):
        match = self.store.match(ids, CONTEXT)
        known = [node.ids.tolist() for node in self.store]
        common = [
            next((i for i in range(len(one)) if one[: i + 1] != ids.tolist()[: i + 1]), len(one)) for one in known
        ]
        assert match.length == match.seen == max(common, default=0)
        assert torch.equal(held(self.store, ids), tensor_of(ids)[:, : match.length])
        for start in range(match.length):
            between = [run.layers[0].kv.segment.key for run in match.runs(start, match.length)]
            assert torch.equal(torch.cat(between, dim=1), tensor_of(ids)[:, start : match.length])

    @rule()
    def unpin(self):
        for node in self.store:
            node.pinned = False
        self.pinned = []

    @invariant()
    def the_budget_holds(self):
        nodes = [*self.store]
        assert self.store.nbytes == sum(node.nbytes for node in nodes) <= self.store.budget
        assert held_bytes(nodes) == self.store.nbytes

    @invariant()
    def what_is_pinned_stays(self):
        for ids in self.pinned:
            assert self.store.match(tokens(*ids), CONTEXT).length == len(ids)


AgainstAListOfPrefixes.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestAgainstAListOfPrefixes = AgainstAListOfPrefixes.TestCase


def outline(store):
    return sorted((node.ids.tolist(), node.run.length) for node in store)


def test_nothing_is_added_behind_a_prefix_that_has_left():
    store = RadixTree(3 * TOKEN)
    first = add(store, tokens(1, 2))
    add(store, tokens(3, 4))
    entry = PrefixEntry(tokens(5), run_of(tokens(1, 2, 5), 2), torch.zeros(1, 2))
    assert store.add(entry, CONTEXT, behind=first) is None
    assert outline(store) == [([3, 4], 2)]


def test_prefixes_that_part_share_their_start():
    store = RadixTree(10**6)
    add(store, tokens(1, 2, 3, 4, 5))
    add(store, tokens(1, 2, 3, 6), start=3)
    assert outline(store) == [([1, 2, 3], 3), ([1, 2, 3, 4, 5], 2), ([1, 2, 3, 6], 1)]
    assert store.nbytes == 6 * TOKEN


def test_one_context_does_not_serve_another():
    store = RadixTree(10**6)
    add(store, tokens(1, 2, 3))
    assert store.match(tokens(1, 2, 3), "elsewhere").length == 0


def test_what_goes_on_from_a_prefix_that_has_left_is_not_kept():
    store = RadixTree(10**6)
    assert add(store, tokens(1, 2, 3, 4), start=2) is None
    assert len(store) == 0


def test_a_prefix_that_grows_lies_in_few_runs():
    """Of 4,000 tokens that came by forty."""
    store, ids = RadixTree(10**9), torch.arange(4000)
    copied = 0
    for end in range(40, 4001, 40):
        before = store.nbytes
        add(store, ids[:end], start=end - 40)
        assert store.nbytes == before + 40 * TOKEN
        copied += max(node.run.length for node in store if len(node) == end)
        assert len(store) <= 5
    assert copied < 10 * 4000
    assert torch.equal(held(store, ids), tensor_of(ids))


def test_a_prefix_that_others_extend_or_that_is_pinned_is_not_joined():
    store = RadixTree(10**6)
    add(store, tokens(1, 2)).pinned = True
    add(store, tokens(1, 2, 3, 4), start=2)
    assert outline(store) == [([1, 2], 2), ([1, 2, 3, 4], 2)]
    add(store, tokens(1, 2, 5), start=2)
    add(store, tokens(1, 2, 5, 6, 7), start=3)
    assert outline(store) == [([1, 2], 2), ([1, 2, 3, 4], 2), ([1, 2, 5, 6, 7], 3)]


def test_the_least_recently_used_leaf_leaves_first():
    store = RadixTree(7 * TOKEN)
    for ids in (tokens(1, 2, 3), tokens(1, 2, 4), tokens(1, 2, 5)):
        add(store, ids)
    store.touch(store.match(tokens(1, 2, 3), CONTEXT))
    add(store, tokens(6, 6, 6))
    assert outline(store) == [([1, 2], 2), ([1, 2, 3], 1), ([1, 2, 5], 1), ([6, 6, 6], 3)]
    store.touch(store.match(tokens(1, 2, 9), CONTEXT))
    add(store, tokens(7, 7, 7))
    assert outline(store) == [([1, 2], 2), ([7, 7, 7], 3)]


def test_a_half_that_stays_lets_the_memory_of_the_other_go():
    store = RadixTree(6 * TOKEN)
    kept = add(store, tokens(1, 2, 3, 4))
    whole = kept.run.layers[0].kv.segment.key.untyped_storage().data_ptr()
    add(store, tokens(1, 2, 5), start=2)
    store.touch(store.match(tokens(1, 2, 5), CONTEXT))
    add(store, tokens(6, 6))
    assert outline(store) == [([1, 2], 2), ([1, 2, 5], 1), ([6, 6], 2)]
    assert all(node.run.layers[0].kv.segment.key.untyped_storage().data_ptr() != whole for node in store)
    assert torch.equal(held(store, tokens(1, 2, 5)), tensor_of(tokens(1, 2, 5)))


def test_what_does_not_fit_beside_pinned_prefixes_is_not_kept():
    store = RadixTree(6 * TOKEN)
    add(store, tokens(1, 2, 3, 4)).pinned = True
    assert add(store, tokens(5, 6, 7)) is None
    assert outline(store) == [([1, 2, 3, 4], 4)]
    assert add(store, tokens(5, 6)) is not None
    assert add(store, tokens(7, 8)) is not None
    assert outline(store) == [([1, 2, 3, 4], 4), ([7, 8], 2)]


def test_a_match_holds_what_it_found_whatever_leaves():
    store = RadixTree(4 * TOKEN)
    add(store, tokens(1, 2, 3, 4))
    match = store.match(tokens(1, 2, 3, 9), CONTEXT)
    add(store, tokens(1, 2, 5), start=2)
    store.clear()
    assert torch.equal(match.runs(0, 3)[0].layers[0].kv.segment.key, tensor_of(tokens(1, 2, 3)))


@pytest.mark.parametrize("how", ["extended", "divided"])
def test_states_serve_from_their_own_token_on_alone(how):
    store = RadixTree(10**6)
    add(store, tokens(1, 2, 3, 4), recurrent=True)
    if how == "extended":
        add(store, tokens(1, 2, 3, 4, 5, 6), start=4, recurrent=True)
    else:
        add(store, tokens(1, 2, 7), recurrent=True)
    lengths = [store.match(tokens(*ids), CONTEXT) for ids in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5], [1, 2, 9], [1, 2])]
    found = [(match.length, match.seen) for match in lengths]
    assert found == ([(6, 6), (4, 5), (0, 2), (0, 2)] if how == "extended" else [(4, 4), (4, 4), (0, 2), (0, 2)])
    add(store, tokens(1, 2), recurrent=True)  # prefilled by itself, its state is known from now on
    assert store.match(tokens(1, 2, 9), CONTEXT).length == 2
    assert store.match(tokens(1, 2, 3, 4), CONTEXT).length == 4
    (state,) = (run.layers[0].state for run in store.match(tokens(1, 2, 9), CONTEXT).runs(0, 2))
    assert float(state.recurrent[0]) == 3


def test_states_that_do_not_fit_are_not_kept():
    store = RadixTree(4 * TOKEN + 8)
    add(store, tokens(1, 2, 3, 4), recurrent=True).pinned = True
    add(store, tokens(1, 2), recurrent=True)
    assert store.nbytes == 4 * TOKEN + 8
    assert add(store, tokens(1, 2, 3), recurrent=True) is None
    assert store.nbytes == 4 * TOKEN + 8


def test_ids_count_where_nothing_else_grows_with_them():
    """Of a model whose layers are all recurrent."""
    store = RadixTree(1000 * (8 + 2 * 4) + 4)
    for count, kept in ((1001, False), (1000, True)):
        ids = torch.arange(count)
        run = PrefixKV(0, count, (LayerState(None, RecurrentState({}, {0: torch.zeros(1)})),))
        assert (store.add(PrefixEntry(ids, run, torch.zeros(count, 2)), CONTEXT) is not None) == kept
    assert store.nbytes == store.budget == held_bytes([*store])


def test_a_part_does_not_hold_the_memory_of_the_whole():
    store = RadixTree(10**6)
    add(store, tokens(1, 2, 3, 4))
    kept = add(store, tokens(1, 2, 5, 6, 7), most=4 * TOKEN)
    assert kept.run.length == 3
    assert held_bytes([kept]) == kept.nbytes == 3 * TOKEN
