"""Tables at fixed device addresses, from which the kernels of a decode step in a CUDA graph read their work.

A graph holds the addresses and the numbers that it was captured with. One graph serves calls with longer prefixes and
other trees, because all that differs between the calls lies in tables of a fixed size. `take` writes another call's
segments and work into them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ..segment import Segment
from .schedule import Extent, Schedule, WorkList, build_schedule, geometry_of, most_uses, rows_using
from .tuning import Tile, multiprocessors

_VECTOR = 16  # bytes of the widest load
_LEAST_SEGMENTS = 4

LayerSegments = Sequence[Sequence[Segment]]


class Launch(NamedTuple):
    """All that a work list depends on beside the segments: KV heads, queries of a row for each (`G * T`), and tile."""

    kv_heads: int
    queries: int
    tile: Tile


class DecodeTables:
    """The tables of a decode step, at fixed addresses.

    Args:
        buffers: own keys `[B, Hkv, S, D]` and values `[B, Hkv, S, Dv]` of each layer. The places of a layer's segments
            are distances from these, because the buffers never move, and segments come and go.
        segments: the segments of each layer that have tokens and rows. They differ between layers in their place only.

    Attributes:
        uses: the most rows that use one segment; the tiles depend on this number.
        aligned: whether every segment can be read 16 bytes at a time.
        shared_length: `[B]` int32, tokens that precede a row's own.

    Raises:
        ValueError: the layers do not share alike, or hold segments in a way that would have to be copied.
    """

    def __init__(self, buffers: Sequence[tuple[torch.Tensor, torch.Tensor]], segments: LayerSegments) -> None:
        key = buffers[0][0]
        self._buffers = list(buffers)
        self._index = {keys.data_ptr(): index for index, (keys, _) in enumerate(buffers)}
        self._batch, self._device = len(key), key.device
        if not _alike(segments):
            raise ValueError("segments must be alike, and dense in their last dimension, in all layers")
        # Without keys and values, so that their memory can be freed.
        self._segments = [Extent(*each) for each in geometry_of(segments[0])]
        self.uses = most_uses(self._segments, self._batch)
        self._room = max(_LEAST_SEGMENTS, _power_of_2(len(self._segments)))
        self._addresses = torch.zeros(len(buffers), self._room, 6, dtype=torch.int64, device=self._device)
        self.shared_length = torch.zeros(self._batch, dtype=torch.int32, device=self._device)
        self._works: dict[Launch, WorkList] = {}
        offsets = self._offsets(segments)
        self.aligned = _aligned(offsets, key.element_size())
        self._write(offsets)

    @property
    def in_use(self) -> bool:
        """Whether kernels have used the tables."""
        return bool(self._works)

    def addresses(self, keys: torch.Tensor) -> torch.Tensor:
        """`SharedOperands.addresses` of the layer whose own keys are `keys`, as distances from its own buffers.

        Raises:
            RuntimeError: no layer has these own keys.
        """
        index = self._index.get(keys.data_ptr())
        if index is None:
            raise RuntimeError("relay attention was given other own keys than its tables were made for")
        return self._addresses[index]

    def work(self, kv_heads: int, queries: int, tile: Tile) -> WorkList:
        """The work list of a launch, with room for segments of any length. It is made at its first use.

        Raises:
            RuntimeError: it would have to be made while a CUDA graph is captured.
        """
        launch = Launch(kv_heads, queries, tile)
        work = self._works.get(launch)
        if work is None:
            if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError("relay attention was captured into a CUDA graph before the same step ran once")
            with _disable_current_modes():  # a recording of the step must not contain this
                host = self._schedule(launch, self._segments)
                work = self._works[launch] = self._make(launch, host)
                _put(work, host)
        return work

    def take(self, segments: LayerSegments) -> bool:
        """Hold another call's segments. If they do not fit or need other kernels, nothing changes; returns False."""
        if not _alike(segments) or len(segments) != len(self._buffers) or len(segments[0]) > self._room:
            return False
        if most_uses(segments[0], self._batch) != self.uses:
            return False
        offsets = self._offsets(segments)
        if _aligned(offsets, self._buffers[0][0].element_size()) != self.aligned:
            return False
        hosts = {launch: self._schedule(launch, segments[0]) for launch in self._works}
        if not all(_fits(work, hosts[launch]) for launch, work in self._works.items()):
            return False
        self._segments = [Extent(*each) for each in geometry_of(segments[0])]
        self._write(offsets)
        for launch, work in self._works.items():
            _put(work, hosts[launch])
        return True

    def _write(self, offsets: list[list[list[int]]]) -> None:
        if self._segments:
            self._addresses[:, : len(self._segments)] = torch.tensor(offsets, device="cpu").to(self._device)
        lengths = [0] * self._batch
        for segment in self._segments:
            for row in range(self._batch) if segment.rows is None else segment.rows:
                lengths[row] += segment.length
        self.shared_length.copy_(torch.tensor(lengths, dtype=torch.int32, device="cpu"))

    def _offsets(self, segments: LayerSegments) -> list[list[list[int]]]:
        """For each layer and segment: offset, head stride and token stride of keys, then of values, in elements."""
        size = self._buffers[0][0].element_size()
        return [
            [
                [
                    number
                    for tensor, base in zip((segment.key, segment.value), bases, strict=True)
                    for number in ((tensor.data_ptr() - base.data_ptr()) // size, tensor.stride(0), tensor.stride(1))
                ]
                for segment in layer
            ]
            for layer, bases in zip(segments, self._buffers, strict=True)
        ]

    def _schedule(self, launch: Launch, segments: Sequence[Segment | Extent]) -> Schedule:
        return build_schedule(segments, self._batch, *launch, self._device)

    def _make(self, launch: Launch, host: Schedule) -> WorkList:
        """Room for the work lists of segments with the same rows and any lengths.

        Segments are split so that there are `waves * multiprocessors` programs, and each tile of queries has at least
        one split. So there are at most that number over the KV heads, plus one for each tile, of items. For each item a
        tile writes at most as many parts as it has rows.
        """
        tile, filling = launch.tile, launch.tile.waves * multiprocessors(self._device) / launch.kv_heads
        tiles = sum(math.ceil(rows_using(s, self._batch) * launch.queries / tile.block_m) for s in self._segments)
        items = math.ceil(filling) + 2 * max(tiles, 1)
        parts = items * max(1, tile.block_m // launch.queries)
        uses = max(2 * self._batch, _power_of_2(len(host.uses)))

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=self._device)

        # An item of zeros is no work, because it has no queries.
        return WorkList(zeros(items, 8), zeros(uses, 2), zeros(self._batch + 1), parts, most_parts=parts)


def _fits(work: WorkList, host: Schedule) -> bool:
    return len(host.items) <= len(work.items) and len(host.uses) <= len(work.uses) and host.row_parts[-1] <= work.parts


def _put(work: WorkList, host: Schedule) -> None:
    """Write a list into the room of another; the items behind it become no work."""
    if not _fits(work, host):
        raise RuntimeError(f"a work list has {len(host.items)} items, and room for {len(work.items)}")
    for table, numbers in ((work.items, host.items), (work.uses, host.uses), (work.row_parts, host.row_parts)):
        full = torch.zeros(table.shape, dtype=table.dtype, device="cpu")
        if numbers:
            full[: len(numbers)] = torch.tensor(numbers, dtype=table.dtype, device="cpu")
        table.copy_(full)


def _alike(segments: LayerSegments) -> bool:
    dense = all(part.stride(-1) == 1 for layer in segments for s in layer for part in (s.key, s.value))
    return dense and all(geometry_of(layer) == geometry_of(segments[0]) for layer in segments)


def _aligned(offsets: list[list[list[int]]], itemsize: int) -> bool:
    return not any(number % (_VECTOR // itemsize) for layer in offsets for segment in layer for number in segment)


def _power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
