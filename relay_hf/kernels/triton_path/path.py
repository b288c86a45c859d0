"""Relay attention by Triton kernels: decode for few queries a row, prefill for many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from ..plan import Plan
from ..segment import Segment
from .call import INTERPRETED, Call
from .decode import _launch_decode
from .prefill import _launch_prefill

# Stacked queries of a row (G * T) from which on a tile of one row's alone fills the matrix units, and its keys are read
# from the L2 cache often enough; below, rows share a tile.
_PREFILL_FROM = 64
_MAX_HEAD_SIZE = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(device_type: str, dtype: torch.dtype, head_size: int) -> str | None:
    """Why the kernels can't take such tensors, or None."""
    if device_type != ("cpu" if INTERPRETED else "cuda"):
        return f"the kernels need a CUDA device (or the CPU under TRITON_INTERPRET=1), not {device_type!r}"
    if dtype not in _DTYPES:
        return f"the kernels take float32, bfloat16 and float16, not {dtype}"
    if head_size > _MAX_HEAD_SIZE:
        return f"the kernels take head sizes up to {_MAX_HEAD_SIZE}, not {head_size}"
    return None


def relay_attention(
    plan: Plan,
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reference.relay_attention` with own_start, own_length and own_mask inside `plan`; nothing is validated."""
    call = Call.of(plan, query, segments, key, value, scale, sliding_window, softcap, sinks, alibi_slopes)
    batch, heads, length, _ = query.shape
    out = query.new_empty(batch, length, heads, value.shape[3])
    launch = _launch_prefill if call.group * length >= _PREFILL_FROM else _launch_decode
    # Triton launches on the current device, which need not be the one that holds this layer.
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        launch(call, out)
    return out
