"""Checks of the operator's arguments: each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .segment import Segment

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_arguments(
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    own_start: torch.Tensor | None,
    own_mask: torch.Tensor | None,
    scale: float | None,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> None:
    """Raise TypeError or ValueError for the first argument of `relay_attention` that does not fit."""
    _check_own(query, key, value)
    if isinstance(segments, Segment) or not isinstance(segments, Sequence):
        raise TypeError(f"segments must be a sequence of Segment, such as a list; got {type(segments).__name__}")
    for i, segment in enumerate(segments):
        _check_segment(f"segments[{i}]", segment, key, value)
    _check_visibility(own_start, own_mask, key)
    _check_number("scale", scale, positive=False)
    _check_number("softcap", softcap, positive=True)
    if sliding_window is not None and (type(sliding_window) is not int or sliding_window < 1):
        raise ValueError(f"sliding_window must be an int of 1 or more, or None for no window; got {sliding_window!r}")
    if sinks is not None:
        _check_tensor("sinks", sinks, (query.shape[1],), "[Hq]", query.device)
        if not sinks.is_floating_point():
            raise TypeError(f"sinks must be floating point; got {sinks.dtype}")


def _check_own(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    for name, tensor, layout in (
        ("query", query, "[B, Hq, T, D]"),
        ("key", key, "[B, Hkv, S, D]"),
        ("value", value, "[B, Hkv, S, Dv]"),
    ):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a tensor {layout}; got {type(tensor).__name__}")
        if tensor.dim() != 4 or 0 in tensor.shape:
            raise ValueError(f"{name} must be {layout} with no size of 0; got {list(tensor.shape)}")
        _check_like_query(name, tensor, query)
    if query.dtype not in _DTYPES:
        raise TypeError(f"query must be float64, float32, bfloat16 or float16; got {query.dtype}")
    batch, heads, length, size = query.shape
    kv_heads, own_length = key.shape[1:3]
    _check_tensor("key", key, (batch, kv_heads, own_length, size), "[B, Hkv, S, D]", query.device)
    _check_tensor(
        "value", value, (batch, kv_heads, own_length, value.shape[3]), "[B, Hkv, S, Dv] like key", query.device
    )
    if heads % kv_heads:
        raise ValueError(f"query must have a multiple of key's {kv_heads} heads; got {heads}")
    if own_length < length:
        raise ValueError(
            f"key must have a column for each query, S >= T = {length}; got S = {own_length}. "
            "The queries' own keys belong in key, not in a segment"
        )


def _check_segment(name: str, segment: Segment, key: torch.Tensor, value: torch.Tensor) -> None:
    if not isinstance(segment, Segment):
        raise TypeError(f"{name} must be a Segment; got {type(segment).__name__}")
    batch, kv_heads, _, size = key.shape
    length = segment.key.shape[1] if segment.key.dim() == 3 else 0
    for part, tensor, width, layout in (
        ("key", segment.key, size, "[Hkv, P, D]"),
        ("value", segment.value, value.shape[3], "[Hkv, P, Dv]"),
    ):
        _check_tensor(f"{name}.{part}", tensor, (kv_heads, length, width), layout, key.device)
        _check_like_query(f"{name}.{part}", tensor, key)
    if type(segment.start) is not int or segment.start < 0:
        raise ValueError(f"{name}.start must be an int of 0 or more; got {segment.start!r}")
    rows = segment.rows
    if rows is None:
        return
    if not isinstance(rows, torch.Tensor) or rows.dtype is not torch.int64 or rows.dim() != 1:
        what = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise TypeError(f"{name}.rows must be an int64 tensor [R], or None for all rows; got {what}")
    if rows.device != key.device:
        raise ValueError(f"{name}.rows must be on {key.device}; got {rows.device}")
    listed = rows.tolist()
    if len(set(listed)) != len(listed) or not all(0 <= row < batch for row in listed):
        raise ValueError(f"{name}.rows must be different rows of 0 to {batch - 1}; got {listed}")


def _check_visibility(own_start: torch.Tensor | None, own_mask: torch.Tensor | None, key: torch.Tensor) -> None:
    batch, _, own_length, _ = key.shape
    if own_start is not None:
        _check_tensor("own_start", own_start, (batch,), "[B]", None)
        if own_start.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"own_start must be int64 or int32; got {own_start.dtype}")
        starts = own_start.tolist()
        if min(starts) < 0 or max(starts) > own_length:
            raise ValueError(f"own_start must be counts of own columns, 0 to {own_length}; got {starts}")
    if own_mask is not None:
        _check_tensor("own_mask", own_mask, (batch, own_length), "[B, S]", key.device)
        if own_mask.dtype is not torch.bool:
            raise TypeError(
                f"own_mask must be bool, True where attended; got {own_mask.dtype}. Pass mask.bool() for one of 1 and 0"
            )


def _check_tensor(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], layout: str, device: torch.device | None
) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor {layout}; got {type(tensor).__name__}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {layout} = {list(shape)}; got {list(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, where query is; got {tensor.device}")


def _check_like_query(name: str, tensor: torch.Tensor, query: torch.Tensor) -> None:
    if tensor.dtype is not query.dtype:
        raise TypeError(f"{name} must be {query.dtype} like query; got {tensor.dtype}")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name} requires grad, but relay attention has no backward; call it under torch.no_grad()")


def _check_number(name: str, number: float | None, *, positive: bool) -> None:
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a float or None; got {type(number).__name__}")
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{name} must be a finite number{' above 0' if positive else ''}; got {number}")
