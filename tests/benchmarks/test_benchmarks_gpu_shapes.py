"""What the GPU benchmark checks and what the tuner tries: every promise, and every way through the kernels."""

import dataclasses

import pytest

from benchmarks.gpu import cases, special, tuning
from relay_hf.kernels.triton import backend, schedule
from relay_hf.kernels.triton.tuning import Tile


def tile(**changes):
    """A row of the table."""
    row = Tile("decode", ("sm_80", "sm_90"), 128, 2, 16, 64, 4, 3, own_block_n=64, waves=2.0)
    return dataclasses.replace(row, **changes)


def test_checked_cases_cover_the_promises_and_differ():
    grid = cases.grid()
    assert len({case.key for case in grid}) == len(grid)
    assert {case.head_size for case in grid} == {64, 80, 96, 112, 128, 160, 192, 256}
    assert {case.group for case in grid} >= set(range(1, 17))
    assert {(case.head_size, case.dtype) for case in grid} >= {(s, d) for s in cases.HEAD_SIZES for d in cases.DTYPES}
    assert {case.length for case in grid} >= {1, 2, 5, 33, 257}


@pytest.mark.parametrize("multiprocessors", [108, 132, 188])
def test_checked_cases_go_every_way_through_the_kernels(monkeypatch, multiprocessors):
    for module in (backend, schedule):
        monkeypatch.setattr(module, "multiprocessors", lambda device: multiprocessors)

    def way(case):
        kv_rows = case.rows * case.kv_heads
        if backend._fills(kv_rows, case.group, case.length, None):
            return "prefill"
        return "split" if schedule.own_splits(case.columns, kv_rows, None) > 1 else "decode"

    assert {name: way(case) for name, case in cases.ONE_CALL.items()} == {name: name for name in cases.ONE_CALL}
    grid = cases.grid()
    for size in cases.HEAD_SIZES:
        assert {way(case) for case in grid if case.head_size == size} == {"decode", "split", "prefill"}
        for dtype in cases.DTYPES:
            mine = [case for case in grid if (case.head_size, case.dtype) == (size, dtype)]
            assert {way(case) for case in mine} >= {"decode", "prefill"}
    for feature in cases.FEATURES:
        mine = [case for case in grid if all(getattr(case, name) == value for name, value in feature.items())]
        assert {way(case) for case in mine} == {"decode", "split", "prefill"}
    assert {way(case) for case in grid if case.group * case.length >= 64} == {"decode", "split", "prefill"}
    assert [way(case) for case in special._RACES] == ["decode", "prefill", "split"]
    assert [way(case) for case in special._GRAPHS] == ["decode", "split"]
    rows = [tile(block_m=m) for m in (16, 32, 64, 128)] + [tile(kernel="prefill", block_m=m) for m in (64, 128)]
    for row in rows:
        shapes = tuning.shapes_of(row, tuning.is_largest(row, rows))
        checked = [way(tuning.case_of(shape, "bfloat16")) for shape in shapes]
        timed = [
            way(dataclasses.replace(tuning.case_of(shape, "bfloat16"), columns=shape.decode.own)) for shape in shapes
        ]
        assert checked == timed
        assert set(timed) <= ({"prefill"} if row.kernel == "prefill" else {"decode", "split"})
        assert "split" in timed or row.kernel == "prefill" or row.block_m * multiprocessors < 128 * 128


def test_a_tuned_row_leaves_the_old_one_to_the_other_chips():
    row, other = tile(), tile(block_m=32)
    best = dataclasses.replace(row, block_n=128)
    outcome = tuning.Outcome(row, tuning.shapes_of(row, largest=False)[:1], best, (8e-6,), (10e-6,), tried=5)
    new = outcome.row("sm_90", "NVIDIA H200")
    assert tuning.rewritten([row, other], "sm_90", {row: new}) == [
        dataclasses.replace(row, chips=("sm_80",)),
        new,
        other,
    ]
    assert new.chips == ("sm_90",)
    assert new.reason == (
        "NVIDIA H200: 8.0 us at 32/8 B=4 P=2048; the best of 5, 0.80 of the time of "
        "block_n=64 num_warps=4 num_stages=3 own_block_n=64 waves=2"
    )
    alone = tile(chips=("sm_90",))
    assert tuning.rewritten([alone], "sm_90", {alone: new}) == [new]


def test_candidates_are_few_and_their_shapes_take_the_row():
    rows = [tile(block_m=m) for m in (16, 32, 64, 128)] + [tile(kernel="prefill", block_m=m) for m in (64, 128)]
    for row in rows:
        assert len(tuning.first_candidates(row)) + len(tuning.second_candidates(row)) <= 32
        largest = tuning.is_largest(row, rows)
        assert largest == (row.block_m == 128)
        for shape in tuning.shapes_of(row, largest):
            queries = (shape.decode.stacked if row.kernel == "decode" else shape.decode.group) * shape.length
            assert queries == row.block_m or (largest and queries > row.block_m)
