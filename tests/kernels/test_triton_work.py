"""The work list: every query of every row meets every token of its segments once, in parts that the merge can find."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_hf.kernels.segment import Segment
from relay_hf.kernels.triton import launch_args, schedule, tuning
from relay_hf.kernels.triton.device_tables import DeviceTableCache
from relay_hf.kernels.triton.tuning import Tile, choose, override

from .cases import Case

CPU = torch.device("cpu")


def segment(length, start=0, rows=None):
    empty = torch.empty(1, length, 1)
    return Segment(empty, empty, start, rows)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_query_meets_every_token_once(data):
    batch, queries = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
    subset = st.none() | st.lists(st.integers(0, batch - 1), unique=True, min_size=1).map(tuple)
    segments = [
        segment(data.draw(st.integers(1, 3000)), 10 * i, data.draw(subset)) for i in range(data.draw(st.integers(0, 4)))
    ]
    tile = Tile(
        "decode",
        ("any",),
        64,
        2,
        data.draw(st.sampled_from([16, 32])),
        16,
        4,
        1,
        16,
        data.draw(st.sampled_from([1.0, 8.0])),
    )
    listed = schedule._build_work_list(segments, batch, 2, queries, tile, CPU)

    seen = {}  # (segment, row, query) -> ranges of tokens; part -> its (row, query)
    parts = {}
    for i, first, end, first_use, begin, stop, split, start in listed.items.view(-1, 8).tolist():
        assert start == segments[i].start
        assert begin < stop
        assert begin % tile.block_n == 0
        for index in range(first, min(first + tile.block_m, end)):
            row, part = listed.uses[first_use + index // queries].tolist()
            seen.setdefault((i, row, index % queries), []).append((begin, stop))
            assert parts.setdefault((part + split, index % queries), row) == row
    for i, each in enumerate(segments):
        for row in range(batch) if each.rows is None else each.rows:
            for query in range(queries):
                ranges = sorted(seen.pop((i, row, query)))
                assert ranges[0][0] == 0
                assert ranges[-1][1] == each.length
                assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
    assert not seen
    assert len(parts) == listed.parts * queries
    row_parts = listed.row_parts.tolist()
    assert row_parts[-1] == listed.parts
    assert max(b - a for a, b in itertools.pairwise(row_parts)) == listed.most_parts
    for (part, _), row in parts.items():
        assert row_parts[row] <= part < row_parts[row + 1]


def test_splits_fill_the_chip_once():
    """32 rows of heads 32/8, 132 multiprocessors: 16 splits are 128 programs, 17 would be two rounds."""
    tile = Tile("decode", ("any",), 128, 2, 128, 64, 8, 3, 64, 1.0)
    size = schedule.split_tokens([32768], [1], 8, tile, 132)[0]
    assert 32768 / size == 16
    # Short segments stay whole: a part would cost more than its tokens.
    assert schedule.split_tokens([100], [1], 8, tile, 132)[0] >= 100


def test_a_geometry_is_listed_once():
    segments = [segment(40), segment(9, 40, (0, 2))]
    again = [segment(40), segment(9, 40, (0, 2))]
    tile = choose("decode", tuning.INTERPRETER, 64, 2, 16)
    assert schedule.work_list(segments, 3, 2, 4, tile, CPU) is schedule.work_list(again, 3, 2, 4, tile, CPU)
    assert schedule.rows_of(segments, 3, CPU) is schedule.rows_of(again, 3, CPU)
    other = [segment(40), segment(9, 40, (0, 1))]
    assert schedule.work_list(segments, 3, 2, 4, tile, CPU) is not schedule.work_list(other, 3, 2, 4, tile, CPU)


def test_what_is_kept_is_bounded():
    kept, built = DeviceTableCache(8), []
    for i in range(50):
        kept.get(i, CPU, lambda i=i: built.append(i) or i)
        kept.get(i, CPU, pytest.fail)
    assert len(kept._built) <= 8
    assert built == list(range(50))


def test_every_layer_of_a_deep_model_keeps_its_table(monkeypatch):
    """100 layers of two segments that lie anywhere: the second step puts nothing on the device."""
    generator = torch.Generator().manual_seed(0)
    gaps = torch.randperm(10_000, generator=generator).tolist()
    pool = torch.randn(1, 20_000, 16)
    layers = [Case(H=1, P=(3, 2), dtype=torch.float32) for _ in range(100)]
    for layer, gap in zip(layers, gaps, strict=False):
        segments = [Segment(pool[:, at : at + n], pool[:, at : at + n], p) for at, n, p in ((0, 3, 0), (5 + gap, 2, 3))]
        layer.segments = segments
        layer.run(backend="triton")
    monkeypatch.setattr(launch_args, "to_device", pytest.fail)
    for layer in layers:
        layer.run(backend="triton")


def test_the_table_has_a_row_for_every_class_and_chip():
    chips = {chip for tile in tuning.table() for chip in tile.chips}
    for kernel in ("decode", "prefill"):
        for chip in chips:
            for size in (16, 64, 80, 128, 192, 256):
                for itemsize in (2, 4):
                    for queries in (1, 17, 5000):
                        tile = choose(kernel, chip, size, itemsize, queries)
                        assert tile.head_size >= size
                        assert tile.reason


def test_an_override_replaces_its_row_alone():
    row = choose("decode", "sm_90", 128, 2, 16)
    changed = Tile(**{**row.__dict__, "block_n": 16})
    with override(changed):
        assert choose("decode", "sm_90", 128, 2, 3) is changed
        assert choose("decode", "sm_90", 128, 2, 17).block_m == 64
        assert choose("decode", "sm_90", 64, 2, 16).block_n != 16
    assert choose("decode", "sm_90", 128, 2, 16) == row


def test_the_backend_asked_for_by_name_is_refused_where_it_cannot_run():
    """In a process of its own, where kernels are compiled and not interpreted."""
    code = """
import torch, relay_hf
from relay_hf.ops import relay_attention, resolve_backend
from tests.support.tiny_models import tiny_model
from relay_hf.testing import prompts
q = torch.randn(2, 2, 1, 16)
assert resolve_backend("auto", q.device, q.dtype) == "torch"
try:
    relay_attention(q, [], q, q, backend="triton")
except RuntimeError as error:
    print(error)
model = relay_hf.patch_model(tiny_model("llama"), policy="always", backend="triton")
model.generate(**prompts(40, (3, 5)), max_new_tokens=2)
print(repr(model.relay.last))
print(model.relay.explain(prompts(40, (3, 5))["input_ids"]).relayed)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0] == (
        "backend=\"triton\": the kernels need a CUDA device (or the CPU under TRITON_INTERPRET=1), not 'cpu'; "
        'use backend="auto" or "torch"'
    )
    assert "left to stock" in lines[1]
    assert lines[0] in lines[1]
    assert lines[2] == "False"
