"""`relay_attention` in plain torch: the own part row by row, then each segment once for all its rows, merged in turn.

Partial results are out `[B, Hkv, G, T, Dv]` and lse `[B, Hkv, G, T]`, both float32 (float64 for float64 inputs). The
lse of an empty part is the lowest finite number. Like -inf it merges with weight 0, but the difference of two of them
is 0 and not NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..arguments import ScoreOptions
from ..plan import Plan
from ..segment import Segment
from .decode import attend_step, fits
from .merge import merge_levels
from .partial import PartMask, attend_part, fusable, fused
from .plan_views import levels_of, own_view
from .visibility import Level, OwnView, SegmentView


def relay_attention(
    plan: Plan,
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    options: ScoreOptions,
) -> torch.Tensor:
    """`reference.relay_attention` with own_start, own_length and own_mask in `plan`; arguments are not validated."""
    batch, heads, length, size = query.shape
    kv_heads = key.shape[1]
    scale, window, softcap, sinks, alibi_slopes = options
    biased = alibi_slopes is not None
    view = own_view(plan, window, query, biased=biased)
    if view.first or view.stop < key.shape[2]:
        key, value = (part.narrow(2, view.first, view.stop - view.first) for part in (key, value))
    if view.unread is not None:
        key, value = key.masked_fill(view.unread, 0.0), value.masked_fill(view.unread, 0.0)
    levels = levels_of(plan, segments, window, query, biased=biased)
    if softcap is None and fits(query, segments, key, value, view, levels):
        return attend_step(query, segments, key, value, view, levels, options)

    grouped = query.view(batch, kv_heads, heads // kv_heads, length, size)
    slopes = None
    if alibi_slopes is not None:
        exact = torch.float64 if query.dtype is torch.float64 else torch.float32
        slopes = alibi_slopes.to(exact).view(kv_heads, -1)

    def attend(level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        stacked = grouped if level.rows is None else grouped.index_select(0, level.rows)
        return _attend_level(stacked, segments, level, slopes, scale, softcap)

    out, lse = attend_part(grouped, key, value, _mask(view, slopes), scale, softcap)
    out = out.view(batch, kv_heads, -1, length, value.shape[3]).to(lse.dtype)
    lse = lse.view(batch, kv_heads, -1, length)
    _complete(lse, view, slopes)
    out, lse = merge_levels(out, lse, levels, attend, keep_lse=sinks is not None)
    if sinks is not None:
        # A part with output 0 and the sink as its lse.
        weight = torch.sigmoid(lse - sinks.to(lse.dtype).view(kv_heads, -1, 1))
        out.mul_(weight.unsqueeze(-1))
    out = out.permute(0, 3, 1, 2, 4).to(query.dtype, memory_format=torch.contiguous_format)
    # `to` does not copy a tensor of an equal dtype, so contiguous() must.
    return out.contiguous().view(batch, length, heads, -1)


def _attend_level(
    query: torch.Tensor,
    segments: Sequence[Segment],
    level: Level,
    slopes: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query `[R, Hkv, G, T, D]`: rows of the first segment, of the second, and so on, each over its own segment."""
    rows, kv_heads, group, length, size = query.shape
    plain = softcap is None and all(view.is_plain for _, view, _, _ in level.parts)
    if not plain or not all(fusable(query, segments[index].key, segments[index].value) for index, *_ in level.parts):
        parts = [
            _attend_segment(query[first:stop], segments[index], seen, slopes, scale, softcap)
            for index, seen, first, stop in level.parts
        ]
        out, lse = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        return out, lse
    # All queries are stacked at once, and the queries of a segment are a slice: 34 us a segment with tiny operands,
    # where stacking each by itself takes 45.
    stacked = query.permute(1, 0, 3, 2, 4).reshape(1, kv_heads, rows * length * group, size)
    count, parts = length * group, []
    for index, view, first, stop in level.parts:
        key, value = segments[index].key, segments[index].value
        if view.first:
            key, value = key[:, view.first :], value[:, view.first :]
        parts.append(
            fused(stacked[:, :, first * count : stop * count], key[None], value[None], 0.0, False, scale=scale)
        )
    out, lse = parts[0] if len(parts) == 1 else (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
    out = out.view(kv_heads, rows, length, group, -1).permute(1, 0, 3, 2, 4)
    return out, lse.view(kv_heads, rows, length, group).permute(1, 0, 3, 2)


def _attend_segment(
    query: torch.Tensor,
    segment: Segment,
    seen: SegmentView,
    slopes: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query `[B, Hkv, G, T, D]` over a segment, all rows stacked."""
    key, value = segment.key, segment.value
    if seen.first:
        key, value = key[:, seen.first :], value[:, seen.first :]
    batch, kv_heads, group, length, size = query.shape
    stacked = query.permute(1, 2, 0, 3, 4).reshape(1, kv_heads, group, batch * length, size)
    key, value = key.unsqueeze(0), value.unsqueeze(0)
    out, lse = attend_part(stacked, key, value, _mask(seen, slopes), scale, softcap)
    out = out.view(kv_heads, group, batch, length, -1).permute(2, 0, 1, 3, 4)
    lse = lse.view(kv_heads, group, batch, length).permute(2, 0, 1, 3)
    _complete(lse, seen, slopes)
    return out, lse


def _mask(view: OwnView | SegmentView, slopes: torch.Tensor | None) -> PartMask:
    bias = None if slopes is None or view.distances is None else view.distances.key_bias(slopes)
    return PartMask(view.mask, bias, isinstance(view, OwnView) and view.causal)


def _complete(lse: torch.Tensor, view: OwnView | SegmentView, slopes: torch.Tensor | None) -> None:
    """Add the queries' share of the bias to the lse `[B, Hkv, G, T]`, and mark empty parts in it."""
    if slopes is not None and view.distances is not None:
        view.distances.complete(lse, slopes)
    if view.empty is not None:
        lse.masked_fill_(view.empty[:, None, None], torch.finfo(lse.dtype).min)
