"""The attention operator: `relay_attention` for models of your own, and `attend`, which a patched model calls."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from .kernels import torch as torch_backend
from .kernels import torch_library
from .kernels.arguments import OwnColumns, ScoreOptions
from .kernels.plan import Plan
from .kernels.segment import Segment
from .kernels.validation import check_arguments, refuse_gradient

__all__ = ["BACKENDS", "attend", "relay_attention", "resolve_backend", "shared_lengths"]

#: What may be asked for as `backend`.
BACKENDS = ("auto", "torch", "triton")


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
    backend: str = "auto",
) -> torch.Tensor:
    """Causal attention of each row over its shared segments followed by its own keys and values.

    A segment is read once for all of its rows. The result is that of attention over the concatenation;
    `relay_hf.kernels.reference.relay_attention` is the specification. Under torch.compile it is one operator in the
    graph, `torch.ops.relay_hf.relay_attention`.

    Args:
        query: `[B, Hq, T, D]`, float64, float32, bfloat16 or float16: the last `T` of a row's own columns. Any strides.
        segments: The shared part, in the order of its tokens. Row `b` attends to every segment that lists it, of
            `P_b` tokens together. May be empty.
        key, value: `[B, Hkv, S, D]` and `[B, Hkv, S, Dv]`, `S >= T`; views of longer buffers are not copied.
            Query head `h` uses KV head `h // (Hq // Hkv)`.
        own_start: `[B]` int64 or int32, number of leading own columns of a row that are padding. None: 0. Own column
            `c` of row `b` is at position `P_b + c - own_start[b]`.
        own_length: `[B]` int64 or int32, `T` to `S`, number of own columns of a row that are filled; the last `T` of
            them are its queries'. Later columns are not read, and may hold anything. None: `S`. own_start and
            own_length are on the device of query; their values are checked only on a CPU, outside of torch.compile.
        own_mask: `[B, S]` bool, True where an own column may be attended. None: everywhere.
        scale: Factor on the scores. None: `D ** -0.5`.
        sliding_window: Only keys with `query position - key position < sliding_window` are visible. None: all.
        softcap: `softcap * tanh(scores / softcap)` on the scaled scores, before masking. None: none.
        sinks: `[Hq]`, one more logit per query head in the softmax's denominator, without a value. None: none.
        alibi_slopes: `[Hq]`, `slope * (key position - query position)` is added to the scaled and capped scores, before
            masking. None: none.
        backend: "triton" for the kernels, "torch", or "auto" for the kernels on a CUDA device where they take such
            tensors, and torch elsewhere. The kernels take no alibi_slopes. A backend that is asked for by name is used
            or refused, never replaced.

    Returns:
        `[B, T, Hq, Dv]`, contiguous, of the dtype of `query`. 0 where nothing is visible. Queries in padding
        columns are finite and otherwise unspecified.

    Raises:
        TypeError, ValueError: An argument does not fit; the message names it.
        RuntimeError: An input requires grad (there is no backward), or the backend that is asked for by name can't
            compute the call; the message says why.

    Example:
        >>> import torch
        >>> from relay_hf.kernels import Segment
        >>> prompt = Segment(key=torch.randn(2, 100, 16), value=torch.randn(2, 100, 16))
        >>> query, own = torch.randn(8, 4, 1, 16), torch.randn(8, 2, 5, 16)
        >>> relay_attention(query, [prompt], own, own).shape
        torch.Size([8, 1, 4, 16])
    """
    _check_backend(backend)
    check_arguments(
        query,
        segments,
        key,
        value,
        own_start,
        own_length,
        own_mask,
        scale,
        sliding_window,
        softcap,
        sinks,
        alibi_slopes,
    )
    own = OwnColumns(own_start, own_length, own_mask)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    options = ScoreOptions(scale, sliding_window, softcap, sinks, alibi_slopes)
    # The dispatcher is used only in graphs, because it costs an eager call host time.
    run = torch_library.call if torch.compiler.is_compiling() else _plan_and_attend
    return run(query, segments, key, value, own, options, backend)


def _plan_and_attend(
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    own: OwnColumns,
    options: ScoreOptions,
    backend: str,
) -> torch.Tensor:
    batch, _, length, head_size = query.shape
    alibi = options.alibi_slopes is not None
    backend = resolve_backend(backend, query.device, query.dtype, max(head_size, value.shape[3]), alibi=alibi)
    plan = Plan(
        batch,
        length,
        key.shape[2],
        shared_length=shared_lengths(segments, batch),
        own_start=own.start,
        own_length=own.length,
        own_mask=own.mask,
    )
    return _implementation(backend)(plan, query, segments, key, value, options)


torch_library.register(_plan_and_attend)


def attend(
    plan: Plan,
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    backend: str = "torch",
    **options: Any,
) -> torch.Tensor:
    """`relay_attention` without validation, with a plan that is made once per forward: a model calls it in each layer.

    `plan` holds own_start, own_length and own_mask, and must fit the lengths of `query` and `key`. All tensors have one
    dtype. `options` are sliding_window, softcap, sinks and alibi_slopes. `backend` is a result of `resolve_backend`.
    """
    refuse_gradient("query", query)
    scores = ScoreOptions(query.shape[3] ** -0.5 if scale is None else scale, **options)
    return _implementation(backend)(plan, query, segments, key, value, scores)


def _implementation(backend: str) -> Callable[..., torch.Tensor]:
    """The function of a backend that `resolve_backend` returned."""
    if backend == "triton":
        from .kernels import triton as triton_backend  # here, because nothing else needs Triton

        return triton_backend.relay_attention
    return torch_backend.relay_attention


def resolve_backend(
    backend: str, device: torch.device, dtype: torch.dtype, head_size: int = 1, *, alibi: bool = False
) -> str:
    """The backend that runs when `backend` is asked for: "torch" or "triton".

    Args:
        backend: one of `BACKENDS`. "auto" is "triton" where the kernels run compiled and take such calls, and "torch"
            elsewhere. Any other is used or refused.
        device, dtype: device and dtype of all tensors.
        head_size: the larger of the two head sizes.
        alibi: whether the call has alibi_slopes.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: `backend` is "triton", and the kernels can't take such calls; the message says why.
    """
    _check_backend(backend)
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    refused = _kernels_refusal(device, dtype, head_size, alibi)
    if refused is None:
        return "triton"
    if backend == "triton":
        raise RuntimeError(f'backend="triton": {refused}; use backend="auto" or "torch"')
    return "torch"


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}; got {backend!r}")


@lru_cache(maxsize=64)
def _kernels_refusal(device: torch.device, dtype: torch.dtype, head_size: int, alibi: bool) -> str | None:
    """Why the Triton kernels can't take such calls, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from .kernels.triton import refusal

    return refusal(device, dtype, head_size, alibi)


def shared_lengths(segments: Sequence[Segment], batch: int) -> int | tuple[int, ...]:
    """Number of shared tokens: one number if all rows use all segments, else one for each row."""
    total = sum(segment.length for segment in segments if segment.rows is None)
    partial = [(segment.rows, segment.length) for segment in segments if segment.rows is not None]
    if not partial:
        return total
    by_row = [total] * batch
    for rows, length in partial:
        for row in rows:
            by_row[row] += length
    return tuple(by_row)
