"""A decode step in plain torch: one query a row, all parts by the fused kernel, merged without a copy.

The fused kernel gives its output the layout of its queries. So own part and segments are views `[B, Hkv, G, D]` of the
same order, and nothing is copied or rearranged between them. With one query head to a KV head, the queries are not
copied either. The time of a small model's decode step depends on the number of operations. The 14 operations here,
instead of the 23 of `backend` (which computes all other cases), save 60 of the 910 us of a layer of the model of
`benchmarks.overhead` (two slow cores).
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
    """Whether `attend_step` can compute this: one query a row, and parts that the fused kernel takes without a mask."""
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
    """`backend.relay_attention` for arguments that `fits`, over the own columns of `own`: `[B, 1, Hq, D]`.

    Only scale and sinks of `options` are used: the views have the window, and arguments that fit have no other options.
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
    if rows.shape[2] == 1:  # without a copy
        return rows.transpose(0, 2)
    return rows.transpose(0, 1).reshape(1, rows.shape[1], -1, rows.shape[3])


def _unstack(part: torch.Tensor, group: int) -> torch.Tensor:
    """The result of a level, `[1, Hkv, R * G, ...]`, as a view `[R, Hkv, G, ...]`."""
    if group == 1:
        return part.transpose(0, 2)
    return part.view(part.shape[1], -1, group, *part.shape[3:]).transpose(0, 1)
