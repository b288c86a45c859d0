"""The views of a plan: which keys the queries of one forward see, computed once for all of its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..plan import Plan
from ..segment import Segment
from .visibility import Level, OwnView, SegmentView, build_levels, build_own, build_segment


class PlanViews:
    """The views of a plan that were built, by segment geometry and window: the `BackendState` of this backend.

    They hold no reference to the plan, which refers to them, so that both are freed at once.
    """

    __slots__ = ("levels", "own", "segments")

    def __init__(self) -> None:
        self.own: dict[object, OwnView] = {}
        self.segments: dict[tuple, SegmentView | None] = {}
        self.levels: dict[tuple, list[Level]] = {}

    @classmethod
    def of(cls, plan: Plan) -> PlanViews:
        """The views of a plan."""
        state = plan.state
        if not isinstance(state, PlanViews):
            state = plan.state = cls()
        return state

    def queries_moved(self) -> None:
        """Drop the views that other positions or rows make wrong."""
        self.own.clear()
        # The view of a segment depends on positions if there is a window, or a bias by distance.
        self.segments = {key: view for key, view in self.segments.items() if key[3] is None and not key[5]}
        self.levels = {key: levels for key, levels in self.levels.items() if key[1] is None and not key[3]}


def own_view(plan: Plan, window: int | None, query: torch.Tensor, *, biased: bool = False) -> OwnView:
    """The view of the own columns; `query` gives the device, and float64 masks if it is float64."""
    built = PlanViews.of(plan).own
    key = (window, query.dtype is torch.float64, biased)
    view = built.get(key)
    if view is None:
        view = built[key] = build_own(plan.queries(), plan.own_mask, window, biased, query)
    return view


def segment_view(
    plan: Plan, segment: Segment, window: int | None, query: torch.Tensor, *, biased: bool = False
) -> SegmentView | None:
    """The view of a segment; None when no query sees any of its tokens."""
    built = PlanViews.of(plan).segments
    key = (segment.length, segment.start, segment.rows, window, query.dtype is torch.float64, biased)
    try:
        return built[key]
    except KeyError:
        view = built[key] = build_segment(plan.queries(), segment, window, biased, query)
        return view


def levels_of(
    plan: Plan, segments: Sequence[Segment], window: int | None, query: torch.Tensor, *, biased: bool = False
) -> list[Level]:
    """The segments of a layer of which some query sees tokens, level by level."""
    built = PlanViews.of(plan).levels
    geometry = tuple((segment.length, segment.start, segment.rows) for segment in segments)
    key = (geometry, window, query.dtype is torch.float64, biased)
    levels = built.get(key)
    if levels is None:
        views = [segment_view(plan, segment, window, query, biased=biased) for segment in segments]
        levels = built[key] = build_levels(segments, views, plan.batch, query)
    return levels
