"""`relay_attention` by Triton kernels: the decode kernels for few queries a row, the prefill kernel for many."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from ..arguments import ScoreOptions
from ..plan import Plan
from ..segment import Segment
from .decode import launch_decode
from .launch_args import INTERPRETED, LaunchArgs, ceil_div
from .prefill import launch_prefill
from .tuning import multiprocessors

_TILE = 64  # queries of a warpgroup
_MAX_HEAD_SIZE = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# No model's attention calls the operator with slopes, because models with ALiBi have attention code of their own.
_NO_SLOPES = "the kernels take no alibi_slopes"


def refusal(device: torch.device, dtype: torch.dtype, head_size: int, alibi: bool = False) -> str | None:
    """Why the kernels can't take such tensors, or slopes of ALiBi if `alibi`; None where they can."""
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"the kernels need a CUDA device (or the CPU under TRITON_INTERPRET=1), not {device.type!r}"
    if device.type == "cuda" and torch.version.hip is not None:
        return "the kernels are made for NVIDIA GPUs, not for ROCm"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"the kernels need compute capability 8.0 or later, not {found}"
    if dtype not in _DTYPES:
        return f"the kernels take float32, bfloat16 and float16, not {dtype}"
    if head_size > _MAX_HEAD_SIZE:
        return f"the kernels take head sizes up to {_MAX_HEAD_SIZE}, not {head_size}"
    return _NO_SLOPES if alibi else None


def relay_attention(
    plan: Plan,
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    options: ScoreOptions,
) -> torch.Tensor:
    """`reference.relay_attention` with own_start, own_length and own_mask in `plan`; arguments are not validated.

    Raises:
        RuntimeError: there are alibi_slopes.
    """
    if options.alibi_slopes is not None:
        raise RuntimeError(f"{_NO_SLOPES}; relay_hf.kernels.torch.relay_attention does")
    batch, heads, length, _ = query.shape
    kv_heads = key.shape[1]
    out = query.new_empty(batch, length, heads, value.shape[3])
    launch = launch_prefill if _fills(batch * kv_heads, heads // kv_heads, length, query.device) else launch_decode
    # Triton launches on the current device, which may be another one than this layer's.
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        launch(LaunchArgs.of(plan, query, segments, key, value, options), out)
    return out


def _fills(kv_rows: int, group: int, length: int, device: torch.device) -> bool:
    """Whether tiles of one row's queries alone fill the matrix units, and there are enough of them to fill the chip.

    Then rows often find a segment's keys in the L2 cache, and no parts are written. Otherwise rows share a tile, and
    keys are split.
    """
    queries = group * length
    return length > 1 and queries >= _TILE and kv_rows * ceil_div(queries, _TILE) >= multiprocessors(device)
