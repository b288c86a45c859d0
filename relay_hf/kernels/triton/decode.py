"""The decode kernel: few queries a row over every shared segment and each row's own tokens, in two launches.

The first launch computes parts: a program takes 16 to 128 queries of one KV head, from all the rows that use a segment,
over one split of the segment's tokens. The second (decode_own_few.py or decode_own.py) takes each row through its own
tokens and adds its parts by their log-sum-exp. If there are too few rows to fill the chip, the first launch computes
their own tokens as parts too, and the second (merge.py) only merges (`reference.merge`).

Parts are out `[part, Hq, T, Dv]` and lse `[part, Hq, T]`, float32, natural log. The parts of segments come first, row
by row, then `own_splits` parts of each row, if that is not 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from .decode_own import attend_own, launch_own, most_queries
from .decode_own_few import FEW, launch_own_few
from .launch_args import NUMBERS, LaunchArgs, ceil_div
from .merge import launch_merge
from .schedule import most_uses, own_splits, rows_of, work_list
from .softmax import attend_range, finish, load_query, start
from .tuning import MAX_REGISTERS, chip_of, choose


@triton.jit(do_not_specialize=[*NUMBERS, "segment_programs", "segment_parts", "own_splits"])
def _decode_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    segment_key_ptr,
    segment_value_ptr,
    out_ptr,
    lse_ptr,
    items_ptr,
    uses_ptr,
    addresses_ptr,
    shared_length_ptr,
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
    segment_programs,
    segment_parts,
    own_splits,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OWN_BLOCK_M: tl.constexpr,
    OWN_BLOCK_N: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    SPLIT_OWN: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    OWN_START: tl.constexpr,
    OWN_LENGTH: tl.constexpr,
    HOLES: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One part: queries over a split of a segment or, if SPLIT_OWN, of a row's own tokens."""
    if OVERLAP:
        gdc_launch_dependents()
    program = tl.program_id(0)
    if program < segment_programs:
        _attend_segment(
            # Programs of one item are neighbours: they read their queries, and write their parts, side by side.
            items_ptr + program // KV_HEADS * 8, program % KV_HEADS,
            query_ptr, segment_key_ptr, segment_value_ptr, out_ptr, lse_ptr, uses_ptr, addresses_ptr,
            shared_length_ptr, own_start_ptr, own_length_ptr,
            query_stride_b, query_stride_h, query_stride_t, scale, softcap, window, query_length, columns,
            KV_HEADS, GROUP, HEAD_SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N, ALIGNMENT,
            WINDOW, SOFTCAP, OWN_START, OWN_LENGTH, UPCAST,
        )  # fmt: skip
    # Not `else`: then the compiler makes separate buffers for the two branches, which do not overlap: 128 KB of shared
    # memory instead of 70 where both tiles are 16 by 64.
    if SPLIT_OWN and program >= segment_programs:
        _attend_own(
            (program - segment_programs) // KV_HEADS,
            program % KV_HEADS,  # segment_programs is a multiple of KV_HEADS
            query_ptr, key_ptr, value_ptr, out_ptr, lse_ptr,
            own_start_ptr, own_length_ptr, own_mask_ptr,
            query_stride_b, query_stride_h, query_stride_t, key_stride_b, key_stride_h, key_stride_n,
            value_stride_b, value_stride_h, value_stride_n, mask_stride_b, scale, softcap, window, query_length,
            columns, segment_parts, own_splits,
            KV_HEADS, GROUP, HEAD_SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, OWN_BLOCK_M, OWN_BLOCK_N, ALIGNMENT,
            CAUSAL, WINDOW, SOFTCAP, OWN_START, OWN_LENGTH, HOLES, UPCAST,
        )  # fmt: skip


@triton.jit
def _attend_segment(
    item_ptr,
    head,
    query_ptr,
    key_ptr,
    value_ptr,
    out_ptr,
    lse_ptr,
    uses_ptr,
    addresses_ptr,
    shared_length_ptr,
    own_start_ptr,
    own_length_ptr,
    query_stride_b,
    query_stride_h,
    query_stride_t,
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
    ALIGNMENT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    OWN_START: tl.constexpr,
    OWN_LENGTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A tile of queries, from all the rows that use a segment, over one split of the segment's tokens."""
    segment = tl.load(item_ptr)
    first_query = tl.load(item_ptr + 1)
    queries = tl.load(item_ptr + 2)
    first_use = tl.load(item_ptr + 3)
    begin = tl.load(item_ptr + 4)
    end = tl.load(item_ptr + 5)
    split = tl.load(item_ptr + 6)
    first_position = tl.load(item_ptr + 7)

    index = first_query + tl.arange(0, BLOCK_M)
    valid = index < queries
    per_row = GROUP * query_length
    use_ptrs = uses_ptr + (first_use + index // per_row) * 2
    row = tl.load(use_ptrs, mask=valid, other=0)
    part = tl.load(use_ptrs + 1, mask=valid, other=0) + split
    t = index % per_row // GROUP
    query_position = t
    if WINDOW:
        column = columns - query_length + t
        if OWN_LENGTH:
            column = tl.load(own_length_ptr + row, mask=valid, other=0).to(tl.int32) - query_length + t
        if OWN_START:
            column -= tl.load(own_start_ptr + row, mask=valid, other=0).to(tl.int32)
        query_position = tl.load(shared_length_ptr + row, mask=valid, other=0) + column
        # Tokens that are too far back for all queries of the tile are not read.
        nearest = tl.min(tl.where(valid, query_position, 2147483647), axis=0)
        begin = tl.maximum(begin, nearest - window + 1 - first_position)

    address_ptr = addresses_ptr + segment * 6
    key_offset = tl.load(address_ptr) + head * tl.load(address_ptr + 1)
    value_offset = tl.load(address_ptr + 3) + head * tl.load(address_ptr + 4)
    query_head = head * GROUP + index % GROUP
    query_offset = row.to(tl.int64) * query_stride_b + query_head * query_stride_h + t * query_stride_t
    query = load_query(query_ptr, query_offset, valid, HEAD_SIZE, BLOCK_D, ALIGNMENT)
    acc, peak, total = start(None, query_head, valid, BLOCK_M, BLOCK_DV, False)
    acc, peak, total = attend_range(
        acc, peak, total, query,
        key_ptr + tl.multiple_of(key_offset, ALIGNMENT),
        tl.multiple_of(tl.load(address_ptr + 2), ALIGNMENT),
        value_ptr + tl.multiple_of(value_offset, ALIGNMENT),
        tl.multiple_of(tl.load(address_ptr + 5), ALIGNMENT),
        None, begin, end, query_position, first_position, scale, softcap, window,
        HEAD_SIZE, VALUE_SIZE, BLOCK_N, BLOCK_D, BLOCK_DV, False, WINDOW, SOFTCAP, False, UPCAST,
    )  # fmt: skip
    slot = (part * (KV_HEADS * GROUP) + query_head).to(tl.int64) * query_length + t
    _store_part(acc, peak, total, out_ptr, lse_ptr, slot, valid, VALUE_SIZE, BLOCK_DV)


@triton.jit
def _attend_own(
    item,
    head,
    query_ptr,
    key_ptr,
    value_ptr,
    out_ptr,
    lse_ptr,
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
    segment_parts,
    own_splits,
    KV_HEADS: tl.constexpr,
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
    """A tile of one row's queries over one split of its own tokens."""
    tiles = tl.cdiv(GROUP * query_length, BLOCK_M)
    first_query = item % tiles * BLOCK_M
    split = item // tiles % own_splits
    row = (item // tiles // own_splits).to(tl.int64)
    index = first_query + tl.arange(0, BLOCK_M)
    valid = index < GROUP * query_length
    query_head = head * GROUP + index % GROUP
    acc, peak, total = start(None, query_head, valid, BLOCK_M, BLOCK_DV, False)
    acc, peak, total = attend_own(
        acc, peak, total, row, head, split, own_splits, first_query,
        query_ptr, key_ptr, value_ptr, own_start_ptr, own_length_ptr, own_mask_ptr,
        query_stride_b, query_stride_h, query_stride_t, key_stride_b, key_stride_h, key_stride_n,
        value_stride_b, value_stride_h, value_stride_n, mask_stride_b, scale, softcap, window, query_length, columns,
        GROUP, HEAD_SIZE, VALUE_SIZE, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N, ALIGNMENT,
        CAUSAL, WINDOW, SOFTCAP, OWN_START, OWN_LENGTH, HOLES, UPCAST,
    )  # fmt: skip
    part = segment_parts + row * own_splits + split
    slot = (part * (KV_HEADS * GROUP) + query_head) * query_length + index // GROUP
    _store_part(acc, peak, total, out_ptr, lse_ptr, slot, valid, VALUE_SIZE, BLOCK_DV)


@triton.jit
def _store_part(acc, peak, total, out_ptr, lse_ptr, slot, valid, VALUE_SIZE: tl.constexpr, BLOCK_DV: tl.constexpr):
    """Write output and log-sum-exp of `M` queries to their slots `[M]` of the parts."""
    value_dims = tl.arange(0, BLOCK_DV)
    out, lse = finish(acc, peak, total)
    tl.store(lse_ptr + slot, lse, mask=valid)
    out_ptrs = out_ptr + slot[:, None] * VALUE_SIZE + value_dims[None, :]
    tl.store(out_ptrs, out, mask=valid[:, None] & (value_dims < VALUE_SIZE)[None, :])


def launch_decode(args: LaunchArgs, out: torch.Tensor) -> None:
    """Write the attention of a call into `out` `[B, T, Hq, Dv]`, contiguous."""
    batch, length, heads, value_size = out.shape
    kv_heads, queries = args.key.shape[1], args.group * length
    device, itemsize = out.device, out.element_size()
    shared, chip = args.shared, chip_of(device)
    tables = shared.tables
    uses = most_uses(shared.segments, batch) if tables is None else tables.uses
    tile = choose("decode", chip, args.width, itemsize, uses * queries)
    own_tile = choose("decode", chip, args.width, itemsize, min(queries, most_queries(args.width)))
    if tables is None:
        work = work_list(shared.segments, batch, kv_heads, queries, tile, device)
        shared_length = rows_of(shared.segments, batch, device).shared_length
    else:
        work, shared_length = tables.work(kv_heads, queries, tile), tables.shared_length
    splits = own_splits(args.columns, batch * kv_heads, device)
    split_parts = batch * splits

    parts = work.parts + split_parts
    part_out = torch.empty(parts, heads, length, value_size, dtype=torch.float32, device=device)
    part_lse = torch.empty(parts, heads, length, dtype=torch.float32, device=device)
    segment_programs = len(work.items) * kv_heads
    programs = segment_programs + split_parts * ceil_div(queries, own_tile.block_m) * kv_heads
    # Without a first launch, the second one would overlap with the launch that computes its queries.
    overlapping = args.overlapping if programs else {"OVERLAP": False}
    if programs:
        _decode_kernel[(programs,)](
            args.query,
            args.key,
            args.value,
            shared.keys[0],
            shared.values[0],
            part_out,
            part_lse,
            work.items,
            work.uses,
            shared.addresses,
            shared_length,
            *args.own,  # start, length, mask
            *args.numbers,
            segment_programs,
            work.parts,
            splits,
            **args.constants,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            OWN_BLOCK_M=own_tile.block_m,
            OWN_BLOCK_N=tile.own_block_n,
            SPLIT_OWN=split_parts > 0,
            CAUSAL=length > 1,
            OVERLAP=overlapping["OVERLAP"],
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            maxnreg=MAX_REGISTERS,
        )
    if split_parts:
        most = work.most_parts + splits
        launch_merge(part_out, part_lse, out, work.row_parts, args.options.sinks, splits, most, overlapping)
    elif queries <= FEW:
        few = choose("few", chip, args.width, itemsize, queries)
        launch_own_few(args, part_out, part_lse, out, work, few, overlapping)
    else:
        launch_own(args, part_out, part_lse, out, work, own_tile, overlapping)
