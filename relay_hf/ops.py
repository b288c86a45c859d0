"""The attention operator: for people who write their own model, and the entry that a patched model uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .kernels import torch_path
from .kernels.plan import Plan
from .kernels.segment import Segment
from .kernels.validation import check_arguments

__all__ = ["BACKENDS", "attend", "relay_attention", "resolve_backend", "shared_lengths"]

BACKENDS = ("auto", "torch", "triton")


def relay_attention(
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    own_start: torch.Tensor | None = None,
    own_mask: torch.Tensor | None = None,
    scale: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Causal attention of each row over its shared segments followed by its own keys and values.

    A segment is read once for all of its rows. The result is that of attention over the concatenation;
    `relay_hf.kernels.reference.relay_attention` is the specification.

    Args:
        query: `[B, Hq, T, D]`, float64, float32, bfloat16 or float16: the last `T` of the own columns. Any strides.
        segments: The shared part, in the order of its tokens. Row `b` attends to every segment that lists it, of
            `P_b` tokens together. May be empty.
        key, value: `[B, Hkv, S, D]` and `[B, Hkv, S, Dv]`, `S >= T`; views of longer buffers are not copied.
            Query head `h` uses KV head `h // (Hq // Hkv)`.
        own_start: `[B]` int64 or int32, number of leading own columns of a row that are padding. None: 0. Own column
            `c` of row `b` is at position `P_b + c - own_start[b]`.
        own_mask: `[B, S]` bool, True where an own column may be attended. None: everywhere.
        scale: Factor on the scores. None: `D ** -0.5`.
        sliding_window: Only keys with `query position - key position < sliding_window` are visible. None: all.
        softcap: `softcap * tanh(scores / softcap)` on the scaled scores, before masking. None: none.
        sinks: `[Hq]`, one more logit per query head in the softmax's denominator, without a value. None: none.
        backend: "auto" is "torch" in this version. What is asked for is used or refused, never replaced.

    Returns:
        `[B, T, Hq, Dv]`, contiguous, of the dtype of `query`. 0 where nothing is visible. Queries in padding
        columns are finite and otherwise unspecified.

    Raises:
        TypeError, ValueError: An argument does not fit; the message names it.
        RuntimeError: An input requires grad (there is no backward), or the backend is not available.

    Example:
        >>> import torch
        >>> from relay_hf.kernels import Segment
        >>> prompt = Segment(key=torch.randn(2, 100, 16), value=torch.randn(2, 100, 16))
        >>> query, own = torch.randn(8, 4, 1, 16), torch.randn(8, 2, 5, 16)
        >>> relay_attention(query, [prompt], own, own).shape
        torch.Size([8, 1, 4, 16])
    """
    resolve_backend(backend)
    check_arguments(query, segments, key, value, own_start, own_mask, scale, sliding_window, softcap, sinks)
    batch, _, length, _ = query.shape
    plan = Plan(
        batch,
        length,
        key.shape[2],
        shared_length=shared_lengths(segments, batch),
        own_start=own_start,
        own_mask=own_mask,
    )
    return attend(
        plan, query, segments, key, value, scale=scale, sliding_window=sliding_window, softcap=softcap, sinks=sinks
    )


def attend(
    plan: Plan,
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`relay_attention` with a plan made once per forward and nothing validated: what a model calls once per layer.

    `plan` holds own_start and own_mask, and must be of the lengths of `query` and `key`. All tensors are of one dtype.
    A decode step on tiny tensors takes 57 us on a CPU, 22 of them inside the two attention kernels.
    """
    if query.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("query requires grad, but relay attention has no backward; call it under torch.no_grad()")
    if scale is None:
        scale = query.shape[3] ** -0.5
    return torch_path.relay_attention(
        plan, query, segments, key, value, scale=scale, sliding_window=sliding_window, softcap=softcap, sinks=sinks
    )


def resolve_backend(backend: str) -> str:
    """The backend that runs when `backend` is asked for."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}; got {backend!r}")
    if backend == "triton":
        raise RuntimeError('backend="triton": this version has no Triton kernels; use backend="auto" or "torch"')
    return "torch"


def shared_lengths(segments: Sequence[Segment], batch: int) -> int | torch.Tensor:
    """Number of shared tokens of a row: an int where all rows use all segments, else `[B]` int64 on the host."""
    total = sum(segment.length for segment in segments if segment.rows is None)
    partial = [(segment.rows, segment.length) for segment in segments if segment.rows is not None]
    if not partial:
        return total
    by_row = torch.full((batch,), total, dtype=torch.int64)
    for rows, length in partial:
        by_row[rows.cpu()] += length
    return by_row
