"""Rows that start alike in groups, and groups of groups: shared at every level, with stock's output."""

import copy
import functools

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import relay_hf
from relay_hf.generation import forward_rows, prefill_hook, prefix_prefill
from relay_hf.prefix import Prompts, pruned, shared_runs, walk
from relay_hf.testing import VOCABULARY
from tests.support.generating import CACHE, cache_of
from tests.support.tiny_models import tiny_model

# Plain attention; learned positions; softcap and windows; sinks, windows and experts; latents.
FAMILIES = ("llama", "gpt2", "gemma2", "gpt_oss", "deepseek_v3")
# Each row goes on from a state: beside attention, alone, in one layer with it; short convolutions.
RECURRENT = ("bamba", "mamba2", "falcon_h1", "lfm2")
LEAST = 3  # tokens of a run
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.2},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 2},
    "chunks": {"prefill_chunk_size": 4},
}


@functools.cache
def pair(family):
    stock = tiny_model(family)
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always", min_prefix_length=LEAST)


def batch(rows):
    """Rows of ids, left-padded."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def words(seed, count):
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def generate(model, inputs, **options):
    torch.manual_seed(0)
    wanted = {"output_logits": True, "return_dict_in_generate": True}
    return model.generate(**inputs, **{"max_new_tokens": 5, "min_new_tokens": 5, **wanted, **options})


def assert_stocks(family, inputs, expected_levels, **options):
    """Stock's tokens and logits, cold and with what was kept; so many levels of sharing."""
    stock, ours = pair(family)
    ours.relay.clear()
    expected = generate(stock, inputs, **options)
    for _ in range(2):
        got = generate(ours, inputs, **options)
        assert torch.equal(got.sequences, expected.sequences)
        for one, other in zip(got.logits, expected.logits, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
        report = ours.relay.last
        assert (report.relayed, report.levels) == (expected_levels > 0, expected_levels), report
    return got


@st.composite
def trees(draw, depth):
    """Rows of a tree of runs: `depth` levels of them at most, and then each row's own tokens."""
    if not depth:
        return [words(draw(st.integers(0, 10**6)), draw(st.integers(1, 6)))]
    rows = []
    for branch in range(draw(st.integers(1, 5 if depth == 1 else 2))):
        run = [3 + branch, *words(draw(st.integers(0, 10**6)), draw(st.integers(0, 8)))]
        rows += [run + row for row in draw(trees(draw(st.integers(0, depth - 1))))]
    return rows


def found_levels(inputs, copies, own):
    """Levels that a call should find: those of the whole tree, without the runs that are too short."""
    ran = {name: value.repeat_interleave(copies, dim=0) for name, value in inputs.items()}
    kept = pruned(shared_runs(Prompts.of(**ran), own), lambda tokens, run: tokens >= LEAST)
    return max((depth + 1 for depth, _ in walk(kept)), default=0)


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        (family, mode)
        for family in (*FAMILIES, *RECURRENT)
        for mode in MODES
        if mode != "chunks" or family not in RECURRENT
    ],
)
@given(rows=trees(4), random=st.randoms(use_true_random=False))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_random_trees(family, mode, rows, random):
    options = MODES[mode]
    copies = options.get("num_beams", options.get("num_return_sequences", 1))
    assume(len(rows) * copies > 1)
    random.shuffle(rows)
    inputs = batch(rows)
    own = 2 if family in RECURRENT else 1  # states go on by several tokens at least
    assert_stocks(family, inputs, found_levels(inputs, copies, own), **options)


SYSTEM, DOCUMENTS = words(1, 20), [words(2, 11), words(3, 8), words(4, 8)]
# One system prompt; three documents, two of them asked about twice and thrice; rows in no order.
NESTED = [
    SYSTEM + DOCUMENTS[document] + words(10 + row, 2 + row % 3) for row, document in enumerate([0, 1, 0, 2, 1, 1])
]
ONE, OTHER = words(5, 12), words(6, 16)
FOREST = [[*ONE, 7], [*OTHER, 8], [*ONE, 9, 9], [*OTHER, 10], words(7, 9)]


@pytest.mark.parametrize("family", [*FAMILIES, *RECURRENT])
def test_two_levels(family):
    assert_stocks(family, batch(NESTED), 2)
    report = pair(family)[1].relay.last
    assert (report.prefix_length, report.prefix_tokens_reused) == (20 + 11, 20 + 11 + 8)


@pytest.mark.parametrize("family", [*FAMILIES, *RECURRENT])
def test_rows_without_a_common_start(family):
    assert_stocks(family, batch(FOREST), 1)
    assert pair(family)[1].relay.last.reason == "some of the rows start alike"


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}], ids=str)
def test_several_answers_to_each_of_several_prompts(options):
    """Beams are reordered within a prompt's rows; its segment stays where it is."""
    assert_stocks("llama", batch([words(5, 12), words(6, 16)]), 1, **options)
    assert_stocks("llama", batch([SYSTEM + words(5, 12), SYSTEM + words(6, 16)]), 2, **options)


@pytest.mark.parametrize("rows", [NESTED, FOREST], ids=["nested", "forest"])
def test_each_token_goes_through_the_model_once(rows, monkeypatch):
    seen = 0

    def counting(run):
        def counted(facts, ids, inputs, cache, start, chunk):
            nonlocal seen
            mask = inputs["attention_mask"]
            mask = torch.ones_like(ids) if mask is None else mask
            own = torch.zeros_like(ids[:, 0]) if cache.rows.own_start is None else cache.rows.own_start
            columns = torch.arange(start, ids.shape[1])
            seen += int((mask[:, start:].bool() & (columns >= (start + own)[:, None])).sum())
            return run(facts, ids, inputs, cache, start, chunk)

        return counted

    for module in (prefix_prefill, prefill_hook, forward_rows):
        monkeypatch.setattr(module, "forward_rows", counting(module.forward_rows))
    ours = relay_hf.patch_model(copy.deepcopy(pair("llama")[0]), policy="always", min_prefix_length=1)
    generate(ours, batch(rows), max_new_tokens=1, min_new_tokens=1)
    trie = {tuple(row[:end]) for row in rows for end in range(1, len(row))}
    assert seen == len(trie) + len(rows)  # and the last token of each row, which nobody shares
    assert ours.relay.last.prompt_tokens_computed == seen


def test_memory_is_that_of_distinct_runs_and_of_own_tokens():
    inputs = batch(NESTED)
    out = assert_stocks("llama", inputs, 2)
    cache = cache_of(out)
    heads, size, item, kv, depth = 2, 8, 4, 2, len(cache.layers)
    shared = 20 + 11 + 8  # of the third document only one row asks
    own = inputs["input_ids"].shape[1] + 4 - cache.rows.offset  # the last of five has not been through the model
    assert cache.nbytes() == (shared + len(NESTED) * own) * heads * size * item * kv * depth
    storages = {}
    for layer in cache.layers:
        for tensor in (*layer.own_tensors(), *(t for part in layer.shared for t in part.tensors())):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert sum(storages.values()) == cache.nbytes() + cache.nbytes_reserved()


TURNS = {
    "returned": lambda cache: cache,
    "copied": copy.deepcopy,
    "dynamic": lambda cache: cache.to_dynamic() if isinstance(cache, relay_hf.RelayCache) else cache,
}


@pytest.mark.parametrize("how", TURNS)
@pytest.mark.parametrize("rows", [NESTED, FOREST], ids=["nested", "forest"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v3", "qwen3_next"])
def test_a_second_turn(family, rows, how):
    inputs, results = batch(rows), []
    for model in pair(family):
        first = generate(model, inputs)
        more = torch.arange(5, 5 + 3 * len(rows)).view(-1, 3)
        longer = {
            "input_ids": torch.cat([first.sequences, more], dim=1),
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 8), value=1),
        }
        results.append(generate(model, longer, **{CACHE: TURNS[how](cache_of(first))}))
    assert torch.equal(results[0].sequences, results[1].sequences)
    if how != "dynamic":
        report = pair(family)[1].relay.last
        assert (report.relayed, report.reason) == (True, "a returned cache, continued")
        assert report.levels == (2 if rows is NESTED else 1)


def test_rows_counted_from_the_end_keep_their_segments():
    results = []
    for model in pair("llama"):
        cache = cache_of(generate(model, batch(FOREST)))
        cache.batch_select_indices(torch.tensor([-1, -2, 0]))
        mask = torch.nn.functional.pad(batch(FOREST)["attention_mask"], (0, 5), value=1)[[-1, -2, 0]]
        with torch.no_grad():
            step = torch.arange(5, 8)[:, None]
            results.append(
                model(step, attention_mask=mask, position_ids=mask.cumsum(1)[:, -1:] - 1, **{CACHE: cache}).logits
            )
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


def test_a_segment_that_no_row_uses_is_let_go():
    cache = cache_of(generate(pair("llama")[1], batch(FOREST)))
    before = cache.nbytes()
    cache.batch_select_indices(torch.tensor([0, 2]))
    assert [part.segment.rows for part in cache.layers[0].shared] == [(0, 1)]
    assert cache.nbytes() < before / 2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("what", ["all of a row", "the end of a row"])
def test_a_row_that_ends_in_padding_is_untouched(family, what):
    """With eager attention such a query sees nothing, and its row is an average of all that it may not see."""
    stock = tiny_model(family, attn_implementation="eager")
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", min_prefix_length=LEAST)
    inputs = batch(FOREST)
    inputs["attention_mask"][4, 0 if what.startswith("all") else -2 :] = 0
    assert torch.equal(generate(ours, inputs).sequences, generate(stock, inputs).sequences)
    assert ours.relay.last.reason == "a row ends in padding"


def test_rows_of_a_cache_change_with_their_segments():
    stock, ours = pair("llama")
    inputs, order = batch(NESTED), torch.tensor([4, 0, 0, 2, 5, 1, 3])
    logits = []
    for model in (stock, ours):
        cache = cache_of(generate(model, inputs))
        cache.batch_select_indices(order)
        cache.batch_repeat_interleave(2)
        order_ = torch.arange(14).flip(0)
        cache.reorder_cache(order_)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)
        mask = mask[order].repeat_interleave(2, dim=0)[order_]
        positions = mask.cumsum(1)[:, -1:] - 1
        step = torch.arange(5, 19)[:, None]
        with torch.no_grad():
            logits.append(model(step, attention_mask=mask, position_ids=positions, **{CACHE: cache}).logits)
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)


def test_explain_finds_the_levels_that_a_call_shares():
    ours = pair("llama")[1]
    ours.relay.clear()
    report = ours.relay.explain(**batch(NESTED), max_new_tokens=4)
    generate(ours, batch(NESTED))
    last = ours.relay.last
    assert (report.levels, report.prefix_length, report.reason) == (last.levels, last.prefix_length, last.reason)
    assert report.prompt_tokens_saved == last.prompt_tokens_saved
    assert "6 rows share up to 31 tokens in 2 levels" in repr(report)


def test_explain_draws_the_tree():
    ours = pair("llama")[1]
    ours.relay.clear()
    tree = ["20 tokens, 6 rows (0-5)", "  11 tokens, 2 rows (0, 2)", "  8 tokens, 3 rows (1, 4-5)"]
    assert ours.relay.explain(**batch(NESTED), max_new_tokens=4).tree.splitlines() == tree
    generate(ours, batch(NESTED[:2]))
    tree[0] += ", kept from before"
    assert str(ours.relay.explain(**batch(NESTED), max_new_tokens=4)).splitlines()[-3:] == tree
    ours.relay.clear()
    generate(ours, batch(NESTED[:1]))
    tree[1:2] = ["  11 tokens, 2 rows (0, 2), kept from before"]
    assert ours.relay.explain(**batch(NESTED), max_new_tokens=4).tree.splitlines() == tree
    nothing = ours.relay.explain(torch.arange(3, 33).view(3, 10), max_new_tokens=4)
    assert nothing.tree == ""
    assert ours.relay.last.levels == 0  # and of a call that was run, the report stays one line
    assert "\n" not in repr(ours.relay.last)


def test_the_default_policy_shares_a_run_where_it_pays():
    """On tiny models a part of attention more costs more than it saves."""
    stock, ours = pair("llama")[0], relay_hf.patch_model(copy.deepcopy(pair("llama")[0]), min_prefix_length=LEAST)
    expected = generate(stock, batch(FOREST))
    assert torch.equal(generate(ours, batch(FOREST)).sequences, expected.sequences)
    assert ours.relay.last.reason == "policy 'auto': sharing what some of the rows start with is not expected to pay"


def test_groups_of_samples_as_trainers_call_them():
    """Each prompt several times, left-padded, in training mode, with weights that change between calls."""
    stock, ours = copy.deepcopy(pair("llama")[0]), copy.deepcopy(pair("llama")[1])
    prompts = [SYSTEM + words(5, 9), SYSTEM + words(6, 4), SYSTEM + words(7, 12)]
    inputs = batch([prompt for prompt in prompts for _ in range(3)])
    optimizers = [torch.optim.AdamW(model.train().parameters(), lr=0.05, fused=True) for model in (stock, ours)]
    for _ in range(3):
        outs = [generate(model, inputs, do_sample=True) for model in (stock, ours)]
        assert torch.equal(outs[0].sequences, outs[1].sequences)
        report = ours.relay.last
        assert (report.relayed, report.levels, report.prefix_tokens_reused) == (True, 2, 0), report
        for model, optimizer in zip((stock, ours), optimizers, strict=True):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
