"""What all layers of one forward share: who sees what, worked out once and not once per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .segment import Segment


@dataclass(frozen=True, slots=True, eq=False)
class SegmentView:
    """The tokens of a segment that at least one of its rows sees.

    Attributes:
        first: Index of the first such token; all later ones are computed.
        rows: The rows that use the segment.
        mask: Additive, `[1, 1, R * T, P - first]`, 0 or -inf; None where every query sees all of them.
        empty: `[R, T]` bool, queries that see none of them; None where there is no such query.
    """

    first: int
    rows: torch.Tensor | None
    mask: torch.Tensor | None
    empty: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class OwnView:
    """The own columns that at least one row sees.

    Attributes:
        first: The first such column; all later ones are computed.
        causal: There are as many queries, more than one, as columns from `first`: no query sees a later one's column.
        mask: Additive, `[B or 1, 1, T, S - first]`, 0 or -inf; None where `causal` says it all, or all is visible.
        empty: `[B or 1, T]` bool, queries that see nothing; None where there is no such query.
    """

    first: int
    causal: bool
    mask: torch.Tensor | None
    empty: torch.Tensor | None


class Plan:
    """Visibility of shared and own keys for the queries of one forward.

    Args:
        batch, query_length, own_length: `B`, `T` and `S`: the queries are the last `T` of `S` own columns.
        shared_length: Number of shared tokens that precede a row's own: one for all, or `[B]` integer.
        own_start: `[B]` integer, number of leading own columns of a row that are padding. Read on the host once.
        own_mask: `[B, S]` bool, True where an own column may be attended.

    Note:
        Views are built at first use and kept, one for each segment geometry and window. A plan belongs to one forward:
        the tensors it was given must not change while it is in use.
    """

    __slots__ = ("_own", "_segments", "batch", "own_length", "own_mask", "own_start", "query_length", "shared_length")

    def __init__(
        self,
        batch: int,
        query_length: int,
        own_length: int,
        *,
        shared_length: int | torch.Tensor = 0,
        own_start: torch.Tensor | None = None,
        own_mask: torch.Tensor | None = None,
    ) -> None:
        self.batch = batch
        self.query_length = query_length
        self.own_length = own_length
        self.own_mask = own_mask
        self.own_start: list[int] = [0] * batch if own_start is None else own_start.tolist()
        self.shared_length: list[int] = (
            shared_length.tolist() if isinstance(shared_length, torch.Tensor) else [shared_length] * batch
        )
        self._own: dict[object, OwnView] = {}
        # The rows are kept with the view: as long as they live, no other tensor has their id.
        self._segments: dict[object, tuple[SegmentView | None, torch.Tensor | None]] = {}

    def own(self, window: int | None, query: torch.Tensor) -> OwnView:
        """View of the own columns; `query` gives the device, and float64 masks if it is float64."""
        key = (window, query.dtype is torch.float64)
        view = self._own.get(key)
        if view is None:
            view = self._own[key] = self._build_own(window, query)
        return view

    def segment(self, segment: Segment, window: int | None, query: torch.Tensor) -> SegmentView | None:
        """View of a segment; None when no query sees any of it."""
        key = (segment.length, segment.start, id(segment.rows), window, query.dtype is torch.float64)
        try:
            return self._segments[key][0]
        except KeyError:
            view = self._build_segment(segment, window, query)
            self._segments[key] = (view, segment.rows)
            return view

    def _build_own(self, window: int | None, query: torch.Tensor) -> OwnView:
        length, queries = self.own_length, self.query_length
        first_query = length - queries
        # Never past the first query: so several queries that fill the columns stay causal.
        first = min(min(self.own_start), first_query)
        if window is not None:
            first = max(first, first_query - window + 1)
        causal = queries > 1 and first == first_query
        padded = max(self.own_start) > first
        cut = window is not None and queries > 1 and window < length - first
        if self.own_mask is None and not padded and not cut and (causal or queries == 1):
            return OwnView(first, causal, None, None)

        columns = torch.arange(first, length, device=query.device)
        query_columns = torch.arange(first_query, length, device=query.device)[:, None]
        visible = columns <= query_columns
        if window is not None and cut:
            visible &= query_columns - columns < window
        visible = visible[None]
        if padded:
            own_start = torch.tensor(self.own_start, device=query.device)
            visible = visible & (columns >= own_start[:, None, None])
        empty = None
        if self.own_mask is not None:
            # Without holes a query sees at least itself, padding apart.
            visible = visible & self.own_mask[:, None, first:]
            empty = _where_empty(visible)
        return OwnView(first, causal, _additive(visible[:, None], query), empty)

    def _build_segment(self, segment: Segment, window: int | None, query: torch.Tensor) -> SegmentView | None:
        rows, length = segment.rows, segment.length
        if length == 0 or (rows is not None and rows.numel() == 0):
            return None
        if window is None:
            return SegmentView(0, rows, None, None)
        # First visible token of the first query of each row; the next query's is one later.
        used_by = range(self.batch) if rows is None else rows.tolist()
        ahead = self.own_length - self.query_length - window + 1 - segment.start
        firsts = [self.shared_length[row] - self.own_start[row] + ahead for row in used_by]
        first = max(0, min(firsts))
        if first >= length:
            return None
        if max(firsts) + self.query_length - 1 <= first:
            return SegmentView(first, rows, None, None)
        tokens = torch.arange(first, length, device=query.device)
        query_firsts = torch.tensor(firsts, device=query.device)[:, None] + torch.arange(
            self.query_length, device=query.device
        )
        visible = tokens >= query_firsts[..., None]
        return SegmentView(first, rows, _additive(visible.flatten(0, 1)[None, None], query), _where_empty(visible))


def _additive(visible: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """0 where visible and -inf elsewhere; float32 under half-precision queries, which the fused kernel takes."""
    dtype = torch.float64 if query.dtype is torch.float64 else torch.float32
    return torch.zeros(visible.shape, dtype=dtype, device=query.device).masked_fill_(~visible, float("-inf"))


def _where_empty(visible: torch.Tensor) -> torch.Tensor | None:
    empty = ~visible.any(dim=-1)
    return empty if bool(empty.any()) else None
