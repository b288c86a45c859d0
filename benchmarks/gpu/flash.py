"""Baseline: torch's flash attention over concatenated KV, really stored once for each row."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .context import Context
from .workload import Decode

NAME = "flash"
TEXT = (
    "torch's scaled_dot_product_attention, flash backend, over KV [B, Hkv, P + own, D] stored for each row; "
    "the faster of enable_gqa and of a KV head's queries as a sequence of G"
)
Forms = dict[str, tuple[int, Callable[[], Callable[[], object]]]]


def forms(context: Context, shape: Decode) -> Forms:
    """The ways to call it: bytes of the buffers, and what makes a call on them."""
    found: Forms = {"enable_gqa": (shape.reread_bytes, lambda: _call(context, shape, grouped=False))}
    if shape.group > 1:
        found["queries as a sequence"] = (shape.reread_bytes, lambda: _call(context, shape, grouped=True))
    return found


def _call(context: Context, shape: Decode, grouped: bool) -> Callable[[], object]:
    arena, size = context.arena, shape.head_size
    key, value = (arena.cut(shape.batch, shape.kv_heads, shape.prefix + shape.own, size) for _ in range(2))
    heads = (shape.kv_heads, shape.group) if grouped else (shape.heads, 1)
    query = arena.cut(shape.batch, *heads, size)
    backend = SDPBackend.MATH if context.dry_run else SDPBackend.FLASH_ATTENTION
    gqa = {"enable_gqa": True} if shape.group > 1 and not grouped else {}

    def call() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value, **gqa)

    return call
