"""The merge kernel: it merges the parts of each query by their log-sum-exp, with sinks, into the output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from .launch_args import next_power_of_2
from .softmax import LOG2E

_MOST_PARTS = 64  # at a time: 64 registers a thread at head size 128


@triton.jit(do_not_specialize=["query_length", "segment_parts", "own_splits"])
def _merge_kernel(
    part_out_ptr,
    part_lse_ptr,
    out_ptr,
    row_parts_ptr,
    sinks_ptr,
    query_length,
    segment_parts,
    own_splits,
    HEADS: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PARTS: tl.constexpr,
    SINKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One query: `PARTS` parts at a time, a row's segments first, then its own splits."""
    program = tl.program_id(0).to(tl.int64)
    t = program % query_length
    head = program // query_length % HEADS
    row = program // query_length // HEADS
    first_part = tl.load(row_parts_ptr + row)
    shared = tl.load(row_parts_ptr + row + 1) - first_part
    value_dims = tl.arange(0, BLOCK_DV)

    acc = tl.zeros([BLOCK_DV], dtype=tl.float32)
    peak = float("-inf")
    total = 0.0
    if SINKS:
        # The sink is a part of one token with that score and a value of 0.
        peak = tl.load(sinks_ptr + head).to(tl.float32)
        total = 1.0
    if OVERLAP:
        gdc_wait()  # parts come from the launch before
    for begin in tl.range(0, shared + own_splits, PARTS):
        index = begin + tl.arange(0, PARTS)
        valid = index < shared + own_splits
        part = tl.where(index < shared, first_part + index, segment_parts + row * own_splits + index - shared)
        slot = (part.to(tl.int64) * HEADS + head) * query_length + t
        # lse [PARTS]
        lse = tl.load(part_lse_ptr + slot, mask=valid, other=float("-inf"))
        new_peak = tl.maximum(peak, tl.max(lse, axis=0))
        reference = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2((lse - reference) * LOG2E)
        shrink = tl.exp2((peak - reference) * LOG2E)
        # outs [PARTS, DV]
        outs = tl.load(
            part_out_ptr + slot[:, None] * VALUE_SIZE + value_dims[None, :],
            mask=valid[:, None] & (value_dims < VALUE_SIZE)[None, :],
            other=0.0,
        )
        acc = acc * shrink + tl.sum(weights[:, None] * outs, axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        peak = new_peak
    out = acc / tl.where(total > 0, total, 1.0)
    # out [B, T, Hq, DV]
    out_ptrs = out_ptr + ((row * query_length + t) * HEADS + head) * VALUE_SIZE + value_dims
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=value_dims < VALUE_SIZE)


def launch_merge(
    part_out: torch.Tensor,
    part_lse: torch.Tensor,
    out: torch.Tensor,
    row_parts: torch.Tensor,
    sinks: torch.Tensor | None,
    own_splits: int,
    most_parts: int,
    overlapping: Mapping[str, object],
) -> None:
    """Merge parts into `out`.

    Args:
        part_out: `[N, Hq, T, Dv]` float32, contiguous.
        part_lse: `[N, Hq, T]` float32, contiguous; -inf for an empty part, whose output must still be finite.
        out: `[B, T, Hq, Dv]`, contiguous; the result is written there.
        row_parts: `[B + 1]` int32: row `b`'s segment parts are `row_parts[b]` to `row_parts[b + 1]`; the own parts of
            all rows start at `row_parts[B]`.
        sinks: `[Hq]` or None.
        own_splits: own parts of a row.
        most_parts: the most parts that a row has.
        overlapping: `LaunchArgs.overlapping`.
    """
    batch, length, heads, value_size = out.shape
    _merge_kernel[(batch * heads * length,)](
        part_out,
        part_lse,
        out,
        row_parts,
        sinks,
        length,
        part_out.shape[0] - batch * own_splits,
        own_splits,
        HEADS=heads,
        VALUE_SIZE=value_size,
        BLOCK_DV=next_power_of_2(value_size),
        PARTS=min(_MOST_PARTS, next_power_of_2(most_parts)),
        SINKS=sinks is not None,
        **overlapping,
        num_warps=4,
    )
