"""What all layers of one forward share: which rows are how long, and who sees what, worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .segment import Segment
from .views import Level, OwnView, Queries, SegmentView, build_levels, build_own, build_segment


class Plan:
    """The geometry of the queries, the shared and the own keys of one forward.

    Args:
        batch, query_length, columns: `B`, `T` and `S`, the number of own columns.
        shared_length: Number of shared tokens that precede a row's own: one for all, or one for each row.
        own_start: `[B]` integer, number of leading own columns of a row that are padding. None: 0.
        own_length: `[B]` integer, number of own columns of a row that hold anything; its queries are the last `T` of
            them. None: all `S`.
        own_mask: `[B, S]` bool, True where an own column may be attended. None: everywhere.

    Note:
        Making a plan reads no tensor. The first view, which the torch path asks for, reads own_start and own_length on
        the host; a path that reads them on the device makes none, and never waits for it. Views are kept, one for each
        segment geometry and window. A plan belongs to one forward, or, by `advance`, to one decode step after another.
        The tensors that it was given must not change while it is in use, but for what `advance` and `change_rows` are
        told of.

    Attributes:
        tables: where the kernels look up segments and work of a step that is captured into a CUDA graph
            (`triton_path.DecodeTables`); None: they are looked up by what each call is given.
    """

    __slots__ = (
        "_levels",
        "_own",
        "_queries",
        "_segments",
        "batch",
        "columns",
        "own_length",
        "own_mask",
        "own_start",
        "query_length",
        "shared_length",
        "tables",
    )

    def __init__(
        self,
        batch: int,
        query_length: int,
        columns: int,
        *,
        shared_length: int | tuple[int, ...] = 0,
        own_start: torch.Tensor | None = None,
        own_length: torch.Tensor | None = None,
        own_mask: torch.Tensor | None = None,
    ) -> None:
        self.batch = batch
        self.query_length = query_length
        self.columns = columns
        self.shared_length = (shared_length,) * batch if isinstance(shared_length, int) else shared_length
        self.own_start = own_start
        self.own_length = own_length
        self.own_mask = own_mask
        self.tables: Any = None
        self._queries: Queries | None = None
        self._own: dict[object, OwnView] = {}
        self._segments: dict[tuple, SegmentView | None] = {}
        self._levels: dict[tuple, list[Level]] = {}

    def own(self, window: int | None, query: torch.Tensor, *, biased: bool = False) -> OwnView:
        """View of the own columns; `query` gives the device, and float64 masks if it is float64."""
        key = (window, query.dtype is torch.float64, biased)
        view = self._own.get(key)
        if view is None:
            view = self._own[key] = build_own(self._read_queries(), self.own_mask, window, biased, query)
        return view

    def segment(
        self, segment: Segment, window: int | None, query: torch.Tensor, *, biased: bool = False
    ) -> SegmentView | None:
        """View of a segment; None when no query sees any of it."""
        key = (segment.length, segment.start, segment.rows, window, query.dtype is torch.float64, biased)
        try:
            return self._segments[key]
        except KeyError:
            view = self._segments[key] = build_segment(self._read_queries(), segment, window, biased, query)
            return view

    def levels(
        self, segments: Sequence[Segment], window: int | None, query: torch.Tensor, *, biased: bool = False
    ) -> list[Level]:
        """The segments of a layer that some query sees, level by level."""
        geometry = tuple((segment.length, segment.start, segment.rows) for segment in segments)
        key = (geometry, window, query.dtype is torch.float64, biased)
        levels = self._levels.get(key)
        if levels is None:
            views = [self.segment(segment, window, query, biased=biased) for segment in segments]
            levels = self._levels[key] = build_levels(segments, views, self.batch, query)
        return levels

    def advance(self) -> None:
        """To the next step of a decode: every row has an own column more, as own_length, where given, says by then."""
        if self._queries is not None:
            self._queries = self._queries.advanced()
        self._drop_views()

    def change_rows(self) -> None:
        """Take note that own_start, own_length and own_mask hold other rows than before."""
        self._queries = None
        self._drop_views()

    def _drop_views(self) -> None:
        self._own.clear()
        # What is seen of a segment changes where there is a window, or a bias by distance.
        self._segments = {key: view for key, view in self._segments.items() if key[3] is None and not key[5]}
        self._levels = {key: levels for key, levels in self._levels.items() if key[1] is None and not key[3]}

    def _read_queries(self) -> Queries:
        if self._queries is None:
            starts = [0] * self.batch if self.own_start is None else self.own_start.tolist()
            lengths = [self.columns] * self.batch if self.own_length is None else self.own_length.tolist()
            columns = tuple(length - self.query_length for length in lengths)
            rows = zip(self.shared_length, columns, starts, strict=True)
            positions = tuple(shared + column - start for shared, column, start in rows)
            self._queries = Queries(self.query_length, tuple(starts), columns, positions)
        return self._queries
