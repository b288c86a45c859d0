"""The prefill kernel: many queries a row, over the row's segments and causally over its own tokens, in one launch.

A program takes a tile of one row's query tokens with all query heads of a KV head through the row's segments and then
its own columns, as flash attention does over keys that lie in one piece. It writes no parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch_args import NUMBERS, LaunchArgs, ceil_div
from .schedule import rows_of
from .softmax import attend_range, load_query, start, store_out
from .tuning import MAX_REGISTERS, chip_of, choose


@triton.jit(do_not_specialize=[*NUMBERS, "batch"])
def _prefill_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    segment_key_ptr,
    segment_value_ptr,
    out_ptr,
    row_segments_ptr,
    segment_ids_ptr,
    geometry_ptr,
    addresses_ptr,
    shared_length_ptr,
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
    batch,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    OWN_START: tl.constexpr,
    OWN_LENGTH: tl.constexpr,
    HOLES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`BLOCK_M` queries of one row and KV head over all keys that they see."""
    # Late tiles see the most own columns: they start first. Rows are neighbours: they read the same segments.
    program = tl.program_id(0)
    tile = tl.cdiv(GROUP * query_length, BLOCK_M) - 1 - program // (KV_HEADS * batch)
    head = (program // batch % KV_HEADS).to(tl.int64)
    row = (program % batch).to(tl.int64)
    own_length = columns
    if OWN_LENGTH:
        own_length = tl.load(own_length_ptr + row).to(tl.int32)
    own_start = 0
    if OWN_START:
        own_start = tl.load(own_start_ptr + row).to(tl.int32)
    first_column = own_length - query_length

    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = index < GROUP * query_length
    t = index // GROUP
    query_head = head * GROUP + index % GROUP
    column = first_column + t
    nearest = first_column + tile * BLOCK_M // GROUP
    furthest = first_column + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, query_length - 1)
    query_offset = row * query_stride_b + query_head * query_stride_h + t.to(tl.int64) * query_stride_t
    query = load_query(query_ptr, query_offset, valid, HEAD_SIZE, BLOCK_D, ALIGNMENT)
    acc, peak, total = start(sinks_ptr, query_head, valid, BLOCK_M, BLOCK_DV, SINKS)

    # A tile of padding alone has nothing to see.
    if furthest >= own_start:
        to_position = tl.load(shared_length_ptr + row) - own_start
        for i in tl.range(tl.load(row_segments_ptr + row), tl.load(row_segments_ptr + row + 1)):
            segment = tl.load(segment_ids_ptr + i)
            begin = 0
            end = tl.load(geometry_ptr + segment * 2)
            first_position = tl.load(geometry_ptr + segment * 2 + 1)
            if WINDOW:
                begin = tl.maximum(begin, to_position + nearest - window + 1 - first_position)
            address_ptr = addresses_ptr + segment * 6
            key_offset = tl.load(address_ptr) + head * tl.load(address_ptr + 1)
            value_offset = tl.load(address_ptr + 3) + head * tl.load(address_ptr + 4)
            acc, peak, total = attend_range(
                acc, peak, total, query,
                segment_key_ptr + tl.multiple_of(key_offset, ALIGNMENT),
                tl.multiple_of(tl.load(address_ptr + 2), ALIGNMENT),
                segment_value_ptr + tl.multiple_of(value_offset, ALIGNMENT),
                tl.multiple_of(tl.load(address_ptr + 5), ALIGNMENT),
                None, begin, end, to_position + column, first_position, scale, softcap, window,
                HEAD_SIZE, VALUE_SIZE, BLOCK_N, BLOCK_D, BLOCK_DV, False, WINDOW, SOFTCAP, False, UPCAST,
            )  # fmt: skip

        begin = own_start
        if WINDOW:
            begin = tl.maximum(begin, nearest - window + 1)
        mask_ptr = own_mask_ptr
        if HOLES:
            mask_ptr += row * mask_stride_b
        own_key_ptr = key_ptr + tl.multiple_of(row * key_stride_b + head * key_stride_h, ALIGNMENT)
        own_key_stride = tl.multiple_of(key_stride_n.to(tl.int64), ALIGNMENT)
        own_value_ptr = value_ptr + tl.multiple_of(row * value_stride_b + head * value_stride_h, ALIGNMENT)
        own_value_stride = tl.multiple_of(value_stride_n.to(tl.int64), ALIGNMENT)
        # Tiles that all queries see as a whole need no comparison of positions; tiles at the diagonal do.
        diagonal = begin + tl.maximum(nearest + 1 - begin, 0) // BLOCK_N * BLOCK_N
        acc, peak, total = attend_range(
            acc, peak, total, query, own_key_ptr, own_key_stride, own_value_ptr, own_value_stride, mask_ptr,
            begin, diagonal, column, 0, scale, softcap, window,
            HEAD_SIZE, VALUE_SIZE, BLOCK_N, BLOCK_D, BLOCK_DV, False, WINDOW, SOFTCAP, HOLES, UPCAST,
        )  # fmt: skip
        acc, peak, total = attend_range(
            acc, peak, total, query, own_key_ptr, own_key_stride, own_value_ptr, own_value_stride, mask_ptr,
            diagonal, furthest + 1, column, 0, scale, softcap, window,
            HEAD_SIZE, VALUE_SIZE, BLOCK_N, BLOCK_D, BLOCK_DV, True, WINDOW, SOFTCAP, HOLES, UPCAST,
        )  # fmt: skip

    # out [B, T, Hq, DV]
    slot = (row * query_length + t) * (KV_HEADS * GROUP) + query_head
    store_out(acc, total, out_ptr, slot, valid, VALUE_SIZE, BLOCK_DV)


def launch_prefill(args: LaunchArgs, out: torch.Tensor) -> None:
    """Write the attention of a call into `out` `[B, T, Hq, Dv]`, contiguous."""
    shared = args.shared
    batch, length = out.shape[:2]
    kv_heads, queries = args.key.shape[1], args.group * length
    tile = choose("prefill", chip_of(out.device), args.width, out.element_size(), queries)
    rows = rows_of(shared.segments, batch, out.device)
    _prefill_kernel[(ceil_div(queries, tile.block_m) * kv_heads * batch,)](
        args.query,
        args.key,
        args.value,
        shared.keys[0],
        shared.values[0],
        out,
        rows.row_segments,
        rows.segment_ids,
        rows.geometry,
        shared.addresses,
        rows.shared_length,
        *args.own,  # start, length, mask
        args.options.sinks,
        *args.numbers,
        batch,
        **args.constants,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        SINKS=args.options.sinks is not None,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=MAX_REGISTERS,
    )
