"""The specification: relay attention computed row by row, with all intermediate tensors in full.

Layouts are those of `relay_hf.ops.relay_attention`. It is slow. Every backend is tested against it, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .segment import Segment


def relay_attention(
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    own_start: torch.Tensor | None = None,
    own_length: torch.Tensor | None = None,
    own_mask: torch.Tensor | None = None,
    scale: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each row over its shared segments followed by its own keys and values.

    Args:
        query: `[B, Hq, T, D]`: the last `T` of a row's first own_length columns.
        segments: The shared part: row `b` attends to every segment that lists it.
        key, value: `[B, Hkv, S, D]` and `[B, Hkv, S, Dv]`, `S >= T`. Query head `h` uses KV head `h // (Hq //
            Hkv)`.
        own_start: `[B]` integer, number of leading own columns of a row that are padding. None: 0. Own column `c` of
            row `b` is at position `P_b + c - own_start[b]` after its `P_b` shared tokens.
        own_length: `[B]` integer, `T` to `S`, number of own columns of a row that are filled. Later columns are not
            read. None: `S`.
        own_mask: `[B, S]` bool, True where an own column may be attended. None: everywhere.
        scale: Factor on the scores. None: `D ** -0.5`.
        sliding_window: Only keys with `query position - key position < sliding_window` are visible. None: all.
        softcap: `softcap * tanh(scores / softcap)` on the scaled scores, before masking. None: none.
        sinks: `[Hq]`, one more logit per query head in the softmax's denominator, without a value.
        alibi_slopes: `[Hq]`, `slope * (key position - query position)` is added to the capped scores. None: none.

    Returns:
        `[B, T, Hq, Dv]` of the dtype of `query`. 0 where nothing is visible. Queries in padding columns are finite
        and otherwise unspecified.
    """
    batch, _, query_length, head_size = query.shape
    scale = head_size**-0.5 if scale is None else scale
    rows = []
    for b in range(batch):
        mine = [s for s in segments if s.rows is None or b in s.rows]
        shared_length = sum(s.length for s in mine)
        padding = 0 if own_start is None else int(own_start[b])
        length = key.shape[2] if own_length is None else int(own_length[b])

        columns = torch.arange(length, device=query.device)
        query_columns = columns[length - query_length :, None]
        own_visible = (columns >= padding) & (columns <= query_columns)
        if own_mask is not None:
            own_visible = own_visible & own_mask[b, :length]
        visible = torch.cat([own_visible.new_ones(query_length, shared_length), own_visible], dim=1)

        shared_positions = [torch.arange(s.start, s.start + s.length, device=query.device) for s in mine]
        positions = torch.cat([*shared_positions, shared_length + columns - padding])
        distances = positions - (shared_length + query_columns - padding)
        if sliding_window is not None:
            visible = visible & (-distances < sliding_window)

        row_key = torch.cat([*(s.key for s in mine), key[b, :, :length]], dim=1)
        row_value = torch.cat([*(s.value for s in mine), value[b, :, :length]], dim=1)
        bias = None if alibi_slopes is None else alibi_slopes.to(query.dtype)[:, None, None] * distances
        rows.append(_softmax_attention(query[b], row_key, row_value, visible, scale, softcap, bias, sinks))
    return torch.stack(rows)


def merge(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the union of parts from attention over each (RelayAttention, arXiv 2402.14808).

    Args:
        outs: `[N, ..., Dv]`, the output of each part; finite.
        lses: `[N, ...]`, the natural log-sum-exp of each part's scores; -inf for an empty part.

    Returns:
        Out `[..., Dv]` and log-sum-exp `[...]`; 0 and -inf where all parts are empty.
    """
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - lse).nan_to_num(0.0)
    return (weights.unsqueeze(-1) * outs).sum(dim=0), lse


def _softmax_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    softcap: float | None,
    bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One row: query `[Hq, T, D]`, key `[Hkv, N, D]`, visible `[T, N]`, bias `[Hq, T, N]` -> `[T, Hq, Dv]`."""
    group = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(group, dim=0), value.repeat_interleave(group, dim=0)
    scores = query @ key.transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~visible, float("-inf"))
    sink = scores.new_full((scores.shape[0],), float("-inf")) if sinks is None else sinks.to(scores.dtype)
    logits = torch.cat([scores, sink[:, None, None].expand(-1, scores.shape[1], 1)], dim=2)
    # A query that sees nothing and has no sink has only -inf: its softmax is NaN, its output 0.
    weights = torch.softmax(logits, dim=2).nan_to_num(0.0)[..., :-1]
    return (weights @ value).transpose(0, 1)
