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
    own_length: torch.Tensor | None,
    own_mask: torch.Tensor | None,
    scale: float | None,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
) -> None:
    """Raise TypeError or ValueError for the first argument of `relay_attention` that does not fit.

    Counts in tensors are read only on a CPU and outside of torch.compile, because a read from a device waits for it.
    """
    _check_own(query, key, value)
    if isinstance(segments, Segment) or not isinstance(segments, Sequence):
        raise TypeError(f"segments must be a sequence of Segment, such as a list; got {type(segments).__name__}")
    for i, segment in enumerate(segments):
        _check_segment(f"segments[{i}]", segment, key, value)
    length = query.shape[2]
    _check_counts("own_start", own_start, key, 0, "counts of own columns")
    _check_counts("own_length", own_length, key, length, f"counts of own columns that include a row's {length} queries")
    _check_own_mask(own_mask, key)
    _check_number("scale", scale, positive=False)
    _check_number("softcap", softcap, positive=True)
    if sliding_window is not None and (type(sliding_window) is not int or sliding_window < 1):
        raise ValueError(f"sliding_window must be an int of 1 or more, or None for no window; got {sliding_window!r}")
    _check_per_head("sinks", sinks, query)
    _check_per_head("alibi_slopes", alibi_slopes, query)


def refuse_gradient(name: str, tensor: torch.Tensor) -> None:
    """Raise RuntimeError for a tensor that requires grad."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name} requires grad, but relay attention has no backward; call it under torch.no_grad()")


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
    kv_heads, columns = key.shape[1:3]
    _check_tensor("key", key, (batch, kv_heads, columns, size), "[B, Hkv, S, D]", query.device)
    _check_tensor("value", value, (batch, kv_heads, columns, value.shape[3]), "[B, Hkv, S, Dv] like key", query.device)
    if heads % kv_heads:
        raise ValueError(f"query must have a multiple of key's {kv_heads} heads; got {heads}")
    if columns < length:
        raise ValueError(
            f"key must have a column for each query, S >= T = {length}; got S = {columns}. "
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
    if not isinstance(rows, tuple) or not all(type(row) is int for row in rows):
        what = f"a tensor {list(rows.shape)}" if isinstance(rows, torch.Tensor) else repr(rows)
        raise TypeError(
            f"{name}.rows must be a tuple of ints, such as tuple(rows.tolist()), or None for all rows; got {what}"
        )
    if len(set(rows)) != len(rows) or not all(0 <= row < batch for row in rows):
        raise ValueError(f"{name}.rows must be different rows of 0 to {batch - 1}; got {rows}")


def _check_counts(name: str, counts: torch.Tensor | None, key: torch.Tensor, lowest: int, what: str) -> None:
    if counts is None:
        return
    batch, _, columns, _ = key.shape
    _check_tensor(name, counts, (batch,), "[B]", key.device)
    if counts.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32; got {counts.dtype}")
    if not counts.is_cpu or torch.compiler.is_compiling():
        return
    listed = counts.tolist()
    if min(listed) < lowest or max(listed) > columns:
        raise ValueError(f"{name} must be {what}, {lowest} to {columns}; got {listed}")


def _check_own_mask(own_mask: torch.Tensor | None, key: torch.Tensor) -> None:
    if own_mask is None:
        return
    _check_tensor("own_mask", own_mask, (key.shape[0], key.shape[2]), "[B, S]", key.device)
    if own_mask.dtype is not torch.bool:
        raise TypeError(
            f"own_mask must be bool, True where attended; got {own_mask.dtype}. Pass mask.bool() for one of 1 and 0"
        )


def _check_per_head(name: str, tensor: torch.Tensor | None, query: torch.Tensor) -> None:
    if tensor is None:
        return
    _check_tensor(name, tensor, (query.shape[1],), "[Hq]", query.device)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {tensor.dtype}")
    refuse_gradient(name, tensor)


def _check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int, ...], layout: str, device: torch.device) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor {layout}; got {type(tensor).__name__}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {layout} = {list(shape)}; got {list(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, where query is; got {tensor.device}")


def _check_like_query(name: str, tensor: torch.Tensor, query: torch.Tensor) -> None:
    if tensor.dtype is not query.dtype:
        raise TypeError(f"{name} must be {query.dtype} like query; got {tensor.dtype}")
    refuse_gradient(name, tensor)


def _check_number(name: str, number: float | None, *, positive: bool) -> None:
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a float or None; got {type(number).__name__}")
    # Not math.isfinite, which torch.compile can't trace for a number that is not constant.
    if not -math.inf < number < math.inf or (positive and number <= 0):
        raise ValueError(f"{name} must be a finite number{' above 0' if positive else ''}; got {number}")
