"""The work list of a call: which program computes which queries over which tokens; built on the host per geometry.

A geometry is the segments' lengths, positions and rows, with the batch and the heads. It is the same in all layers and
decode steps of a generate(), so a list is built once and found again. Only the number of a row's own columns changes
from step to step, and the kernels read it from device memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..segment import Segment
from .device_tables import DeviceTableCache, to_device
from .tuning import Tile, multiprocessors

# The fewest tokens of a split. Its part costs 4 * Dv bytes a query to write and as many to read; a token costs 4 * D.
# With 2 tokens for each query of the tile, parts are as much traffic as tokens, but in the L2 cache.
_MIN_SPLIT = 128
_SPLIT_PER_QUERY = 2
_OWN_WAVES = 2


class Extent(NamedTuple):
    """The facts of a segment that a work list depends on: its tokens, their first position, and its rows."""

    length: int
    start: int
    rows: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class RowSegments:
    """The segments of each row, for kernels that take one row at a time.

    Attributes:
        shared_length: `[B]` int32, tokens that precede a row's own.
        row_segments: `[B + 1]` int32: row `b`'s segments are `segment_ids[row_segments[b] : row_segments[b + 1]]`.
        segment_ids: int32.
        geometry: `[segments, 2]` int32: length and first position.
    """

    shared_length: torch.Tensor
    row_segments: torch.Tensor
    segment_ids: torch.Tensor
    geometry: torch.Tensor


@dataclass(frozen=True, eq=False)
class WorkList:
    """Programs of a decode over segments.

    Attributes:
        items: `[items, 8]` int32: segment, first query, end of queries, first use, first token, end of tokens, split,
            position of the segment's first token. Queries of a segment are counted over its uses: `G * T` in each use.
        uses: `[uses, 2]` int32: row, and its part for the segment's first split.
        row_parts: `[B + 1]` int32: row `b`'s parts over segments are `row_parts[b]` to `row_parts[b + 1]`.
        parts: parts over segments of all rows.
        most_parts: the most parts of a row.
    """

    items: torch.Tensor
    uses: torch.Tensor
    row_parts: torch.Tensor
    parts: int
    most_parts: int


_MOST_LISTS = 64

_rows: DeviceTableCache[RowSegments] = DeviceTableCache(_MOST_LISTS)
_work: DeviceTableCache[WorkList] = DeviceTableCache(_MOST_LISTS)


def rows_of(segments: Sequence[Segment], batch: int, device: torch.device) -> RowSegments:
    """The segments of each row, on the device."""
    return _rows.get((geometry_of(segments), batch), device, lambda: _build_rows(segments, batch, device))


def work_list(
    segments: Sequence[Segment], batch: int, kv_heads: int, queries: int, tile: Tile, device: torch.device
) -> WorkList:
    """The work list of a decode in which each row has `queries` (= `G * T`) queries for a KV head."""
    key = (geometry_of(segments), batch, kv_heads, queries, tile)
    return _work.get(key, device, lambda: _build_work_list(segments, batch, kv_heads, queries, tile, device))


def own_splits(columns: int, programs: int, device: torch.device) -> int:
    """How many parts the own columns of a row are cut into; with one part a row there would be `programs` programs.

    0: the second launch reads own tokens itself. It does if there is a program for each multiprocessor at least. With
    fewer, the merge of many parts by few programs would take longer than all else.
    """
    most = multiprocessors(device)
    return 0 if programs > most else max(1, min(_OWN_WAVES * most // programs, columns // _MIN_SPLIT, 32))


def split_tokens(lengths: Sequence[int], tiles: Sequence[int], kv_heads: int, tile: Tile, multi: int) -> list[int]:
    """Tokens of a split of each segment, so that all programs together fill the chip once and end together.

    Args:
        lengths: tokens of each segment.
        tiles: tiles of queries of each segment.
        kv_heads: KV heads.
        tile: the tile.
        multi: multiprocessors.
    """
    work = kv_heads * sum(length * count for length, count in zip(lengths, tiles, strict=True))
    share = max(_MIN_SPLIT, _SPLIT_PER_QUERY * tile.block_m, work / (tile.waves * multi))
    sizes = []
    for length in lengths:
        # Rounded down, because one program more than the chip holds costs as much time as a second round of all.
        splits = max(1, int(length / share))
        sizes.append(max(tile.block_n, math.ceil(length / splits / tile.block_n) * tile.block_n))
    return sizes


def geometry_of(segments: Sequence[Segment]) -> tuple[tuple[int, int, tuple[int, ...] | None], ...]:
    """The fields of `Extent` of each segment, which are the key of a work list."""
    return tuple((segment.length, segment.start, segment.rows) for segment in segments)


def rows_using(segment: Segment | Extent, batch: int) -> int:
    """How many rows use a segment."""
    return batch if segment.rows is None else len(segment.rows)


def most_uses(segments: Sequence[Segment | Extent], batch: int) -> int:
    """The most rows that use one segment."""
    return max((rows_using(segment, batch) for segment in segments), default=0)


def _build_rows(segments: Sequence[Segment], batch: int, device: torch.device) -> RowSegments:
    by_row: list[list[int]] = [[] for _ in range(batch)]
    for i, segment in enumerate(segments):
        for row in segment.rows if segment.rows is not None else range(batch):
            by_row[row].append(i)
    row_segments = [0]
    for mine in by_row:
        row_segments.append(row_segments[-1] + len(mine))
    return RowSegments(
        shared_length=to_device([sum(segments[i].length for i in mine) for mine in by_row], device),
        row_segments=to_device(row_segments, device),
        segment_ids=to_device([i for mine in by_row for i in mine], device),
        geometry=to_device([[s.length, s.start] for s in segments], device),
    )


@dataclass(frozen=True)
class Schedule:
    """A work list on the host: see `WorkList`."""

    items: list[list[int]]
    uses: list[list[int]]
    row_parts: list[int]
    most_parts: int


def build_schedule(
    segments: Sequence[Segment | Extent], batch: int, kv_heads: int, queries: int, tile: Tile, device: torch.device
) -> Schedule:
    """Distribute the work, the longest items first, so that the last programs to run are short."""
    used_by = [range(batch) if segment.rows is None else segment.rows for segment in segments]
    tiles = [math.ceil(len(rows) * queries / tile.block_m) for rows in used_by]
    sizes = split_tokens([s.length for s in segments], tiles, kv_heads, tile, multiprocessors(device))
    splits = [math.ceil(segment.length / size) for segment, size in zip(segments, sizes, strict=True)]

    parts_of_row = [0] * batch
    for rows, count in zip(used_by, splits, strict=True):
        for row in rows:
            parts_of_row[row] += count
    row_parts = [0]
    for count in parts_of_row:
        row_parts.append(row_parts[-1] + count)

    next_part = row_parts[:batch]
    uses: list[list[int]] = []
    items: list[list[int]] = []
    for i, (segment, rows, size, count) in enumerate(zip(segments, used_by, sizes, splits, strict=True)):
        first_use, end = len(uses), len(rows) * queries
        for row in rows:
            uses.append([row, next_part[row]])
            next_part[row] += count
        for split in range(count):
            tokens = [split * size, min(segment.length, (split + 1) * size)]
            for first in range(0, end, tile.block_m):
                items.append([i, first, end, first_use, *tokens, split, segment.start])
    items.sort(key=lambda item: item[4] - item[5])
    return Schedule(items, uses, row_parts, max(parts_of_row, default=0))


def _build_work_list(
    segments: Sequence[Segment], batch: int, kv_heads: int, queries: int, tile: Tile, device: torch.device
) -> WorkList:
    host = build_schedule(segments, batch, kv_heads, queries, tile, device)
    return WorkList(
        items=to_device(host.items, device),
        uses=to_device(host.uses, device),
        row_parts=to_device(host.row_parts, device),
        parts=host.row_parts[-1],
        most_parts=host.most_parts,
    )
