"""Tables of a captured step: the kernels read from them what they are told otherwise, of one call after another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_hf.kernels import reference
from relay_hf.kernels.arguments import ScoreOptions
from relay_hf.kernels.plan import Plan
from relay_hf.kernels.segment import Segment
from relay_hf.kernels.triton import DecodeTables, relay_attention
from relay_hf.kernels.triton.graph_tables import Launch
from relay_hf.kernels.triton.tuning import Tile

CPU = torch.device("cpu")


def segments_of(lengths, rows, heads=2, size=16, seed=0):
    generator, start, found = torch.Generator().manual_seed(seed), 0, []
    for length, used_by in zip(lengths, rows, strict=True):
        key, value = (torch.randn(heads, length, size, generator=generator) for _ in range(2))
        found.append(Segment(key, value, start, used_by))
        start += length
    return found


def shared_lengths(segments, batch):
    return tuple(sum(s.length for s in segments if s.rows is None or row in s.rows) for row in range(batch))


@pytest.mark.parametrize("window", [None, 11])
@pytest.mark.parametrize(("batch", "group"), [(2, 1), (3, 2), (3, 6)], ids=["parts", "few", "own"])
def test_the_kernels_serve_one_call_after_another(batch, group, window):
    query = torch.randn(batch, 2 * group, 1, 16)
    key, value = torch.randn(batch, 2, 21, 16), torch.randn(batch, 2, 21, 16)
    own_length = torch.arange(5, 5 + batch)
    calls = [
        segments_of((20, 9), (None, (1, 0))),
        segments_of((150,), (None,), seed=1),
        segments_of((1, 33, 7), (None, (1,), (0,)), seed=2),
    ]
    tables = DecodeTables([(key, value)], [calls[0]])
    works = None
    for segments in calls:
        assert tables.take([segments])
        plan = Plan(batch, 1, 21, shared_length=shared_lengths(segments, batch), own_length=own_length)
        plan.tables = tables
        elsewhere = segments_of((3,), (None,), seed=9)  # what the call itself is given is not looked at
        options = {"scale": 0.25, "sliding_window": window}
        out = relay_attention(plan, query, elsewhere, key, value, ScoreOptions(**options))
        exact = reference.relay_attention(query, segments, key, value, own_length=own_length, **options)
        torch.testing.assert_close(out, exact, rtol=0, atol=2e-6)
        assert works is None or works == [work.items.data_ptr() for work in tables._works.values()], "in one place"
        works = [work.items.data_ptr() for work in tables._works.values()]


def test_what_does_not_fit_is_refused_and_nothing_changes():
    key = torch.randn(3, 2, 9, 16)
    tables = DecodeTables([(key, key)], [segments_of((20,), (None,))])
    tables.work(2, 1, Tile("decode", ("any",), 64, 4, 16, 16, 4, 1, 16, 2.0))
    before = tables.addresses(key).clone(), tables.shared_length.clone()
    refused = [
        [segments_of((20,), ((0, 1),))],  # other rows: other tiles
        [segments_of((2,) * 5, (None,) * 5)],  # more segments than there is room for
        [segments_of((20,), (None,)), segments_of((20,), (None,))],  # another layer
        [[Segment(torch.randn(2, 16, 20).transpose(1, 2), torch.randn(2, 20, 16), 0, None)]],  # would be copied
    ]
    assert not any(tables.take(segments) for segments in refused)
    assert all(torch.equal(*pair) for pair in zip(before, (tables.addresses(key), tables.shared_length), strict=True))
    with pytest.raises(ValueError, match="segments must be alike"):
        DecodeTables([(key, key), (key, key)], [segments_of((20,), (None,)), segments_of((21,), (None,))])
    with pytest.raises(RuntimeError, match="other own keys"):
        tables.addresses(key.clone())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_there_is_room_for_other_lengths_of_the_same_rows(data):
    batch, queries, kv_heads = (
        data.draw(st.integers(1, 40)),
        data.draw(st.integers(1, 20)),
        data.draw(st.integers(1, 8)),
    )
    subset = st.none() | st.lists(st.integers(0, batch - 1), unique=True, min_size=1).map(tuple)
    rows = data.draw(st.lists(subset, min_size=1, max_size=4))
    block_m, waves = data.draw(st.sampled_from([16, 64])), data.draw(st.sampled_from([0.5, 1.0, 3.0]))
    tile = Tile("decode", ("any",), 64, 2, block_m, 16, 4, 1, 16, waves)
    lengths = st.lists(st.integers(1, 5000), min_size=len(rows), max_size=len(rows))
    key = torch.zeros(batch, kv_heads, 1, 1)

    def drawn():
        empty = [torch.empty(kv_heads, length, 1) for length in data.draw(lengths)]
        return [[Segment(each, each, 0, used_by) for each, used_by in zip(empty, rows, strict=True)]]

    tables = DecodeTables([(key, key)], drawn())
    work = tables.work(kv_heads, queries, tile)
    for _ in range(3):
        segments = drawn()
        assert tables.take(segments)
        host = tables._schedule(Launch(kv_heads, queries, tile), segments[0])
        assert work.items[: len(host.items)].tolist() == host.items
        assert not work.items[len(host.items) :].any()
        assert host.row_parts[-1] <= work.parts
