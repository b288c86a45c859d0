"""A decode step in plain torch: one query a row, all parts by the fused kernel, merged where it leaves them.

That kernel lays its output out as its queries lie. So as `[B, Hkv, G, D]` own part and segments are views of one order,
and nothing is copied or rearranged between them; nor, with one query head to a KV head, are the queries. A decode step
of a small model is as fast as it has few operations: 14 here in place of the 23 of `backend`, which can do all else,
take 60 us off the 910 of a layer of the model of `benchmarks.overhead` (two slow cores).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..arguments import ScoreOptions
from ..segment import Segment
from .merge import merge_levels
from .partial import fusable, fused
from .visibility import Level, OwnView


def fits(
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    own: OwnView,
    levels: Sequence[Level],
) -> bool:
    """Whether `attend_step` can: one query a row, which sees of each part something that the fused kernel takes."""
    if query.shape[2] != 1 or own.empty is not None or own.distances is not None or not fusable(query, key, value):
        return False
    for level in levels:
        for index, view, _, _ in level.parts:
            if not view.is_plain or not fusable(query, segments[index].key, segments[index].value):
                return False
    return True


def attend_step(
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    own: OwnView,
    levels: Sequence[Level],
    options: ScoreOptions,
) -> torch.Tensor:
    """`backend.relay_attention` of what `fits`, over the own columns that `own` says: `[B, 1, Hq, D]`.

    Of `options` the scale and the sinks are left to heed: the views have the window, and what `fits` has nothing else.
    """
    scale, sinks = options.scale, options.sinks
    batch, heads, _, size = query.shape
    kv_heads, dtype = key.shape[1], query.dtype
    group = heads // kv_heads
    if group > 1:
        query = query.view(batch, kv_heads, group, size)

    def attend(level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        stacked = _stack(query if level.rows is None else query.index_select(0, level.rows))
        parts = []
        for index, view, first, stop in level.parts:
            keys, values = segments[index].key.unsqueeze(0), segments[index].value.unsqueeze(0)
            if view.first:
                keys, values = keys[:, :, view.first :], values[:, :, view.first :]
            part = stacked
            if len(level.parts) > 1:
                part = stacked.narrow(2, first * group, (stop - first) * group)
            parts.append(fused(part, keys, values, 0.0, False, scale=scale))
        out, lse = parts[0] if len(parts) == 1 else (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
        return _unstack(out, group), _unstack(lse, group)

    out, lse = fused(query, key, value, 0.0, False, attn_mask=own.mask, scale=scale)
    if out.dtype is not lse.dtype:
        out = out.to(lse.dtype)
    out, lse = merge_levels(out, lse, levels, attend, keep_lse=sinks is not None)
    if sinks is not None:
        # A part with output 0 and the sink as its lse.
        out.mul_(torch.sigmoid(lse - sinks.to(lse.dtype).view(kv_heads, group)).unsqueeze(-1))
    return out.reshape(batch, 1, heads, size).to(dtype).contiguous()


def _stack(rows: torch.Tensor) -> torch.Tensor:
    """Queries `[R, Hkv, G, D]` as those of one row, `[1, Hkv, R * G, D]`."""
    if rows.shape[2] == 1:  # where it lies
        return rows.transpose(0, 2)
    return rows.transpose(0, 1).reshape(1, rows.shape[1], -1, rows.shape[3])


def _unstack(part: torch.Tensor, group: int) -> torch.Tensor:
    """What a level gave, `[1, Hkv, R * G, ...]`, as `[R, Hkv, G, ...]`, where it lies."""
    if group == 1:
        return part.transpose(0, 2)
    return part.view(part.shape[1], -1, group, *part.shape[3:]).transpose(0, 1)
