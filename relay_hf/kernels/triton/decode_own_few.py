"""The decode kernel for own tokens of one or two queries of a row and KV head: own tokens by vectors, then the merge.

A matrix unit takes 16 queries at a time, and its operands go through shared memory, past barriers. For one or two
queries this costs more than it saves. Here a warp reads a tile of keys and values straight into registers, and computes
each query as a vector. So a program is small, many run at the same time, and only memory limits their speed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from .launch_args import NUMBERS, LaunchArgs, next_power_of_2
from .schedule import WorkList
from .softmax import LOG2E, load_tile, store_out, tanh
from .tuning import MAX_REGISTERS, Tile

FEW = 2  # queries; from four on matrix units are as fast (H200: 34.6 us for 36.9 at 32/8 B=128 P=128)


@triton.jit(do_not_specialize=NUMBERS)
def _few_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    part_out_ptr,
    part_lse_ptr,
    out_ptr,
    row_parts_ptr,
    own_start_ptr,
    own_length_ptr,
    own_mask_ptr,
    sinks_ptr,
    query_stride_b,
    query_stride_h,
    query_stride_t,
    key_stride_b,
    key_stride_h,
    key_stride_n,
    value_stride_b,
    value_stride_h,
    value_stride_n,
    mask_stride_b,
    scale,
    softcap,
    window,
    query_length,
    columns,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    OWN_START: tl.constexpr,
    OWN_LENGTH: tl.constexpr,
    HOLES: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The `QUERIES` queries of one row and KV head: over own tokens, then merged with parts over segments."""
    program = tl.program_id(0)
    head = (program % KV_HEADS).to(tl.int64)
    row = (program // KV_HEADS).to(tl.int64)
    end = columns
    if OWN_LENGTH:
        end = tl.load(own_length_ptr + row).to(tl.int32)
    begin = 0
    if OWN_START:
        begin = tl.load(own_start_ptr + row).to(tl.int32)
    first_part = tl.load(row_parts_ptr + row)
    last_part = tl.load(row_parts_ptr + row + 1)
    first_column = end - query_length
    if WINDOW:
        begin = tl.maximum(begin, first_column - window + 1)

    # acc [Q, DV], peak [Q] in log2, total [Q]
    which = tl.arange(0, BLOCK_Q)
    query_head = head * GROUP + which % GROUP
    acc = tl.zeros([BLOCK_Q, BLOCK_DV], dtype=tl.float32)
    peak = tl.full([BLOCK_Q], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_Q], dtype=tl.float32)
    if SINKS:
        peak = tl.load(sinks_ptr + query_head, mask=which < QUERIES, other=0.0).to(tl.float32) * LOG2E
        total += 1.0
    key_ptr += tl.multiple_of(row * key_stride_b + head * key_stride_h, ALIGNMENT)
    value_ptr += tl.multiple_of(row * value_stride_b + head * value_stride_h, ALIGNMENT)
    key_step = tl.multiple_of(key_stride_n.to(tl.int64), ALIGNMENT)
    value_step = tl.multiple_of(value_stride_n.to(tl.int64), ALIGNMENT)
    dims = tl.arange(0, BLOCK_D)
    for token in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        # key [N, D], value [N, DV]
        key = load_tile(key_ptr, key_step, token, end, BLOCK_N, HEAD_SIZE, BLOCK_D).to(tl.float32)
        value = load_tile(value_ptr, value_step, token, end, BLOCK_N, VALUE_SIZE, BLOCK_DV).to(tl.float32)
        tokens = token + tl.arange(0, BLOCK_N)
        attended = tokens < end
        if HOLES:
            attended = tl.load(own_mask_ptr + row * mask_stride_b + tokens, mask=attended, other=0) != 0
        for i in tl.static_range(QUERIES):
            t = i // GROUP
            this_head = head * GROUP + i % GROUP
            offset = tl.multiple_of(row * query_stride_b + this_head * query_stride_h + t * query_stride_t, ALIGNMENT)
            query = tl.load(query_ptr + offset + dims, mask=dims < HEAD_SIZE, other=0.0).to(tl.float32)
            scores = tl.sum(key * query[None, :], axis=1)
            if SOFTCAP:
                scores = softcap * LOG2E * tanh(scores * (scale / softcap))
            else:
                scores = scores * (scale * LOG2E)
            distance = first_column + t - tokens
            visible = attended & (distance >= 0)
            if WINDOW:
                visible = visible & (distance < window)
            scores = tl.where(visible, scores, float("-inf"))
            old_peak = tl.max(tl.where(which == i, peak, float("-inf")), axis=0)
            new_peak = tl.maximum(old_peak, tl.max(scores, axis=0))
            # If nothing has been seen yet, 0 instead of -inf gives weights of 0, not NaN.
            reference = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            weights = tl.exp2(scores - reference)
            shrink = tl.exp2(old_peak - reference)
            mine = which == i
            added = tl.sum(value * weights[:, None], axis=0)
            acc = tl.where(mine[:, None], acc * shrink + added[None, :], acc)
            total = tl.where(mine, total * shrink + tl.sum(weights, axis=0), total)
            peak = tl.where(mine, new_peak, peak)

    if OVERLAP:
        gdc_wait()  # parts come from the launch before
    value_dims = tl.arange(0, BLOCK_DV)
    lines = tl.arange(0, BLOCK_Q * PARTS)
    of_query = lines % BLOCK_Q
    for first in tl.range(first_part, last_part, PARTS):
        # A part is a token whose score is the part's log-sum-exp and whose value is its output.
        part = first + lines // BLOCK_Q
        inside = (part < last_part) & (of_query < QUERIES)
        slot = (part * (KV_HEADS * GROUP) + head * GROUP + of_query % GROUP).to(tl.int64) * query_length
        slot += of_query // GROUP
        # scores [Q * PARTS], values [Q * PARTS, DV]
        scores = tl.load(part_lse_ptr + slot, mask=inside, other=float("-inf")) * LOG2E
        values = tl.load(
            part_out_ptr + slot[:, None] * VALUE_SIZE + value_dims[None, :],
            mask=inside[:, None] & (value_dims < VALUE_SIZE)[None, :],
            other=0.0,
        )
        for i in tl.static_range(QUERIES):
            mine = which == i
            old_peak = tl.max(tl.where(mine, peak, float("-inf")), axis=0)
            my_scores = tl.where(of_query == i, scores, float("-inf"))
            new_peak = tl.maximum(old_peak, tl.max(my_scores, axis=0))
            reference = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            weights = tl.exp2(my_scores - reference)
            shrink = tl.exp2(old_peak - reference)
            added = tl.sum(values * weights[:, None], axis=0)
            acc = tl.where(mine[:, None], acc * shrink + added[None, :], acc)
            total = tl.where(mine, total * shrink + tl.sum(weights, axis=0), total)
            peak = tl.where(mine, new_peak, peak)
    # out [B, T, Hq, DV]
    slot = (row * query_length + which // GROUP) * (KV_HEADS * GROUP) + query_head
    store_out(acc, total, out_ptr, slot, which < QUERIES, VALUE_SIZE, BLOCK_DV)


def parts_at_once(queries: int) -> int:
    """How many parts of each query are merged at a time: 64 registers a thread at head size 128."""
    return max(1, 16 // next_power_of_2(queries))


def launch_own_few(
    args: LaunchArgs,
    part_out: torch.Tensor,
    part_lse: torch.Tensor,
    out: torch.Tensor,
    work: WorkList,
    tile: Tile,
    overlapping: Mapping[str, object],
) -> None:
    """Write the attention of a call into `out`, given its parts over segments (see `launch_merge`)."""
    batch, length = out.shape[:2]
    kv_heads, queries = args.key.shape[1], args.group * length
    _few_kernel[(batch * kv_heads,)](
        args.query,
        args.key,
        args.value,
        part_out,
        part_lse,
        out,
        work.row_parts,
        *args.own,  # start, length, mask
        args.options.sinks,
        *args.numbers,
        **args.constants,
        **overlapping,
        QUERIES=queries,
        BLOCK_Q=next_power_of_2(queries),
        BLOCK_N=tile.block_n,
        PARTS=parts_at_once(queries),
        STAGES=tile.num_stages,
        SINKS=args.options.sinks is not None,
        num_warps=tile.num_warps,
        maxnreg=MAX_REGISTERS,
    )
