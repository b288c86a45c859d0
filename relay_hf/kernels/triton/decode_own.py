"""The decode kernel for a row's own tokens: one launch that takes them and merges all parts; or parts of splits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from .launch_args import NUMBERS, LaunchArgs, ceil_div
from .schedule import WorkList
from .softmax import LOG2E, attend_range, load_query, start, store_out
from .tuning import MAX_REGISTERS, Tile


def most_queries(head_size: int) -> int:
    """Most queries of a tile that goes through a row's own tokens: 64 of head size 256 spill where parts are added."""
    return 128 if head_size <= 128 else 32


def parts_at_a_time(tile: Tile) -> int:
    """Number of parts that are loaded at the same time: 64 registers a thread at head size 128."""
    return max(1, min(4, 64 // tile.block_m))


@triton.jit
def attend_own(
    acc,
    peak,
    total,
    row,
    head,
    split,
    splits,
    first_query,
    query_ptr,
    key_ptr,
    value_ptr,
    own_start_ptr,
    own_length_ptr,
    own_mask_ptr,
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
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    OWN_START: tl.constexpr,
    OWN_LENGTH: tl.constexpr,
    HOLES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The softmax state after one of `splits` shares of a row's own tokens; positions are counted in own columns."""
    row = row.to(tl.int64)
    head = head.to(tl.int64)
    end = columns
    if OWN_LENGTH:
        end = tl.load(own_length_ptr + row).to(tl.int32)
    begin = 0
    if OWN_START:
        begin = tl.load(own_start_ptr + row).to(tl.int32)
    first_column = end - query_length
    if WINDOW:
        begin = tl.maximum(begin, first_column - window + 1)
    share = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), splits), BLOCK_N) * BLOCK_N
    begin += split * share
    end = tl.minimum(end, begin + share)

    index = first_query + tl.arange(0, BLOCK_M)
    valid = index < GROUP * query_length
    t = index // GROUP
    query_head = head * GROUP + index % GROUP
    query_offset = row * query_stride_b + query_head * query_stride_h + t * query_stride_t
    query = load_query(query_ptr, query_offset, valid, HEAD_SIZE, BLOCK_D, ALIGNMENT)
    mask_ptr = own_mask_ptr
    if HOLES:
        mask_ptr += row * mask_stride_b
    return attend_range(
        acc, peak, total, query,
        key_ptr + tl.multiple_of(row * key_stride_b + head * key_stride_h, ALIGNMENT),
        tl.multiple_of(key_stride_n.to(tl.int64), ALIGNMENT),
        value_ptr + tl.multiple_of(row * value_stride_b + head * value_stride_h, ALIGNMENT),
        tl.multiple_of(value_stride_n.to(tl.int64), ALIGNMENT),
        mask_ptr, begin, end, first_column + t, 0, scale, softcap, window,
        HEAD_SIZE, VALUE_SIZE, BLOCK_N, BLOCK_D, BLOCK_DV, CAUSAL, WINDOW, SOFTCAP, HOLES, UPCAST,
    )  # fmt: skip


@triton.jit
def load_part(
    part, last_part, query_head, t, valid, out_ptr, lse_ptr, query_length,
    HEADS: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Score `[M]` (log2) and value `[M, DV]` of a part; the score is -inf from `last_part` on."""
    dims = tl.arange(0, BLOCK_DV)
    inside = valid & (part < last_part)
    slot = (part * HEADS + query_head).to(tl.int64) * query_length + t
    score = tl.load(lse_ptr + slot, mask=inside, other=float("-inf")) * LOG2E
    mask = inside[:, None] & (dims < VALUE_SIZE)[None, :]
    return score, tl.load(out_ptr + slot[:, None] * VALUE_SIZE + dims[None, :], mask=mask, other=0.0)


@triton.jit
def add_parts(
    acc, peak, total, part, last_part, query_head, t, valid, out_ptr, lse_ptr, query_length,
    HEADS: tl.constexpr, VALUE_SIZE: tl.constexpr, BLOCK_DV: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The softmax state after `PARTS` (1, 2 or 4) more parts from `part` on, each added like a token (`load_part`).

    All loads come first, so that they run at the same time. (One tensor [PARTS, M, DV] took 220 registers, with which
    a multiprocessor runs two programs only.)
    """
    score, value = load_part(
        part, last_part, query_head, t, valid, out_ptr, lse_ptr, query_length, HEADS, VALUE_SIZE, BLOCK_DV
    )  # fmt: skip
    new_peak = tl.maximum(peak, score)
    if PARTS > 1:
        score_1, value_1 = load_part(
            part + 1, last_part, query_head, t, valid, out_ptr, lse_ptr, query_length, HEADS, VALUE_SIZE, BLOCK_DV
        )  # fmt: skip
        new_peak = tl.maximum(new_peak, score_1)
    if PARTS > 2:
        score_2, value_2 = load_part(
            part + 2, last_part, query_head, t, valid, out_ptr, lse_ptr, query_length, HEADS, VALUE_SIZE, BLOCK_DV
        )  # fmt: skip
        score_3, value_3 = load_part(
            part + 3, last_part, query_head, t, valid, out_ptr, lse_ptr, query_length, HEADS, VALUE_SIZE, BLOCK_DV
        )  # fmt: skip
        new_peak = tl.maximum(new_peak, tl.maximum(score_2, score_3))
    reference = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    shrink = tl.exp2(peak - reference)
    weight = tl.exp2(score - reference)
    acc = acc * shrink[:, None] + value * weight[:, None]
    total = total * shrink + weight
    if PARTS > 1:
        weight = tl.exp2(score_1 - reference)
        acc += value_1 * weight[:, None]
        total += weight
    if PARTS > 2:
        weight = tl.exp2(score_2 - reference)
        acc += value_2 * weight[:, None]
        total += weight
        weight = tl.exp2(score_3 - reference)
        acc += value_3 * weight[:, None]
        total += weight
    return acc, new_peak, total


@triton.jit(do_not_specialize=NUMBERS)
def _own_kernel(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    OWN_START: tl.constexpr,
    OWN_LENGTH: tl.constexpr,
    HOLES: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A tile of one row's queries: over its own tokens, then merged with its parts over segments, into the output."""
    program = tl.program_id(0)
    tiles = tl.cdiv(GROUP * query_length, BLOCK_M)
    head = program % KV_HEADS
    first_query = program // KV_HEADS % tiles * BLOCK_M
    row = (program // KV_HEADS // tiles).to(tl.int64)
    index = first_query + tl.arange(0, BLOCK_M)
    valid = index < GROUP * query_length
    query_head = head * GROUP + index % GROUP
    t = index // GROUP
    first_part = tl.load(row_parts_ptr + row)
    last_part = tl.load(row_parts_ptr + row + 1)
    acc, peak, total = start(sinks_ptr, query_head, valid, BLOCK_M, BLOCK_DV, SINKS)
    acc, peak, total = attend_own(
        acc, peak, total, row, head, 0, 1, first_query,
        query_ptr, key_ptr, value_ptr, own_start_ptr, own_length_ptr, own_mask_ptr,
        query_stride_b, query_stride_h, query_stride_t, key_stride_b, key_stride_h, key_stride_n,
        value_stride_b, value_stride_h, value_stride_n, mask_stride_b, scale, softcap, window, query_length, columns,
        GROUP, HEAD_SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N, ALIGNMENT,
        CAUSAL, WINDOW, SOFTCAP, OWN_START, OWN_LENGTH, HOLES, UPCAST,
    )  # fmt: skip

    if OVERLAP:
        gdc_wait()
    for part in tl.range(first_part, last_part, PARTS):
        acc, peak, total = add_parts(
            acc, peak, total, part, last_part, query_head, t, valid, part_out_ptr, part_lse_ptr, query_length,
            KV_HEADS * GROUP, VALUE_SIZE, BLOCK_DV, PARTS,
        )  # fmt: skip
    # out [B, T, Hq, DV]
    slot = (row * query_length + t) * (KV_HEADS * GROUP) + query_head
    store_out(acc, total, out_ptr, slot, valid, VALUE_SIZE, BLOCK_DV)


def launch_own(
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
    kv_heads = args.key.shape[1]
    _own_kernel[(batch * ceil_div(args.group * length, tile.block_m) * kv_heads,)](
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
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.own_block_n,
        PARTS=parts_at_a_time(tile),
        CAUSAL=length > 1,
        SINKS=args.options.sinks is not None,
        **overlapping,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=MAX_REGISTERS,
    )
