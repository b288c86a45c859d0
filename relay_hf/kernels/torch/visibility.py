"""Which keys of a part queries see: the bounds of these keys, a mask within, and the queries that see none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..plan import Queries
from ..segment import Segment
from .alibi import Distances


@dataclass(frozen=True, slots=True, eq=False)
class SegmentView:
    """The tokens of a segment that at least one of its rows sees.

    Attributes:
        first: Index of the first such token; all later ones are computed.
        mask: Additive, `[1, 1, R * T, P - first]`, 0 or -inf; None where every query sees all of them.
        empty: `[R, T]` bool, queries that see none of them; None where there is no such query.
        distances: For a position bias; None where none was asked for.
    """

    first: int
    mask: torch.Tensor | None
    empty: torch.Tensor | None
    distances: Distances | None

    @property
    def is_plain(self) -> bool:
        """Whether every query sees all of them, and nothing is added to the scores."""
        return self.mask is None and self.empty is None and self.distances is None


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """Segments of which each row uses one at most, so that their results are merged at once.

    Attributes:
        rows: `[R]` int64, the rows of the first segment, of the second, and so on; None: all rows, in their order.
        parts: for each segment its number, its view, and where its rows begin and end in `rows`.
    """

    rows: torch.Tensor | None
    parts: tuple[tuple[int, SegmentView, int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class OwnView:
    """The own columns that at least one row sees.

    Attributes:
        first: The first such column.
        stop: The column after the last one.
        causal: All rows have as many queries as columns, and more than one: no query sees a later one's column.
        mask: Additive, `[B or 1, 1, T, stop - first]`, 0 or -inf; None if `causal` is the whole mask, or all is
            visible.
        empty: `[B or 1, T]` bool, queries that see nothing; None where there is no such query.
        unread: `[B, 1, stop - first, 1]` bool, columns beyond a row's own length. Nothing may be computed with them,
            because a NaN stays a NaN under a weight of 0. None where all rows are of one length.
        distances: For a position bias; None where none was asked for.
    """

    first: int
    stop: int
    causal: bool
    mask: torch.Tensor | None
    empty: torch.Tensor | None
    unread: torch.Tensor | None
    distances: Distances | None


def build_own(
    queries: Queries, own_mask: torch.Tensor | None, window: int | None, biased: bool, query: torch.Tensor
) -> OwnView:
    """View of the own columns; `query` gives the device, and float64 masks if it is float64."""
    count, starts, query_columns = queries.count, queries.own_starts, queries.columns
    stop = max(query_columns) + count
    # Never after the first query, so that several queries that fill the columns stay causal.
    firsts = map(min, starts, query_columns)
    if window is None:
        first = min(firsts)
    else:
        first = min(max(seen, column - window + 1) for seen, column in zip(firsts, query_columns, strict=True))
    # Rows of one length have the same mask, without their padding.
    ragged = min(query_columns) + count != stop
    by_row = query_columns if ragged else query_columns[:1]
    distances = None
    if biased:
        distances = Distances.of(stop - first, [column - stop + 1 for column in by_row], count, query)

    causal = count > 1 and not ragged and first == query_columns[0]
    padded = max(starts) > first
    cut = window is not None and window < stop - first
    if own_mask is None and not (padded or cut or ragged) and (causal or count == 1):
        return OwnView(first, stop, causal, None, None, None, distances)

    columns = torch.arange(first, stop, device=query.device)
    of_queries = (_tensor(by_row, query)[:, None] + torch.arange(count, device=query.device))[..., None]
    visible = columns <= of_queries
    if window is not None and cut:
        visible &= of_queries - columns < window
    if padded:
        visible = visible & (columns >= _tensor(starts, query)[:, None, None])
    empty = None
    if own_mask is not None:
        # Without holes a query sees at least itself, unless it is padding.
        visible = visible & own_mask[:, None, first:stop]
        empty = _where_empty(visible)
    unread = (columns > of_queries[:, -1]).view(len(starts), 1, -1, 1) if ragged else None
    return OwnView(first, stop, causal, _additive(visible[:, None], query), empty, unread, distances)


def build_segment(
    queries: Queries, segment: Segment, window: int | None, biased: bool, query: torch.Tensor
) -> SegmentView | None:
    """View of a segment; None when no query sees any of it."""
    rows, length = segment.rows, segment.length
    used_by = range(len(queries.positions)) if rows is None else rows
    if length == 0 or len(used_by) == 0:
        return None
    positions = [queries.positions[row] for row in used_by]
    first, firsts = 0, []
    if window is not None:
        # First visible token of the first query of each row; that of the next query is one later.
        firsts = [position - window + 1 - segment.start for position in positions]
        first = max(0, min(firsts))
        if first >= length:
            return None
    distances = None
    if biased:
        last = segment.start + length - 1
        distances = Distances.of(length - first, [position - last for position in positions], queries.count, query)
    if window is None or max(firsts) + queries.count - 1 <= first:
        return SegmentView(first, None, None, distances)
    tokens = torch.arange(first, length, device=query.device)
    query_firsts = _tensor(firsts, query)[:, None] + torch.arange(queries.count, device=query.device)
    visible = tokens >= query_firsts[..., None]
    mask = _additive(visible.flatten(0, 1)[None, None], query)
    return SegmentView(first, mask, _where_empty(visible), distances)


def build_levels(
    segments: Sequence[Segment], views: Sequence[SegmentView | None], batch: int, query: torch.Tensor
) -> list[Level]:
    """Segments in the fewest levels that keep their order. Segments without a view are in no level."""
    levels: list[tuple[list[int], list[tuple[int, SegmentView, int, int]]]] = []
    for number, (segment, view) in enumerate(zip(segments, views, strict=True)):
        if view is None:
            continue
        used_by = range(batch) if segment.rows is None else segment.rows
        if not levels or not set(levels[-1][0]).isdisjoint(used_by):
            levels.append(([], []))
        rows, parts = levels[-1]
        parts.append((number, view, len(rows), len(rows) + len(used_by)))
        rows += used_by
    everyone = list(range(batch))
    return [Level(None if rows == everyone else _tensor(rows, query), tuple(parts)) for rows, parts in levels]


def _tensor(numbers: tuple[int, ...] | list[int], query: torch.Tensor) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=query.device)


def _additive(visible: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """0 where visible and -inf elsewhere; float32 under half-precision queries, which the fused kernel takes."""
    dtype = torch.float64 if query.dtype is torch.float64 else torch.float32
    return torch.zeros(visible.shape, dtype=dtype, device=query.device).masked_fill_(~visible, float("-inf"))


def _where_empty(visible: torch.Tensor) -> torch.Tensor | None:
    empty = ~visible.any(dim=-1)
    return empty if bool(empty.any()) else None
