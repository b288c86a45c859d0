"""A layer's attention as one operation of a graph of torch.compile.

The operation finds the forward's context and the cache by itself when it runs. So a graph holds nothing that differs
from call to call or from step to step, and serves them all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import RelayError
from .context import active_context
from .layer import AttentionRequest, Operands, ScoreSettings, attend_layer

_LIBRARY = torch.library.Library("relay_hf", "FRAGMENT")
_LIBRARY.define(
    "layer_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float? scaling, float? softcap, "
    "Tensor? sinks, int? layer_idx, str module, bool causal, float dropout, str? unknown, "
    "ScalarType? autocast) -> Tensor",
    # A replay of a CUDA graph repeats none of the host's counting, so Inductor must leave the operation out of one.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)


def traced(request: AttentionRequest, operands: Operands, options: ScoreSettings) -> Tensor:
    """`attend_layer` as an operation of a graph."""
    # A graph contains autocast's casts and runs outside of autocast, so the operation is given the dtype.
    device_type = operands.query.device.type
    autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    return torch.ops.relay_hf.layer_attention(*operands, *options, *request, autocast)


def _layer_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, *rest: Any
) -> Tensor:
    softcap, sinks, *asked, autocast = rest
    context = active_context()
    if context is None:
        raise RelayError(
            "a compiled graph of a forward with a RelayCache runs in one without: another thread has switched the "
            "model's attention meanwhile. Generate in one thread at a time, or without torch.compile."
        )
    with torch.autocast(query.device.type, autocast, enabled=autocast is not None):
        return attend_layer(
            context,
            AttentionRequest(*asked),
            context.cache.config,
            Operands(query, key, value, mask),
            ScoreSettings(scaling, softcap, sinks),
        )


def _fake(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Tensor:
    batch, heads, length, _ = query.shape
    autocast = rest[-1] if isinstance(rest[-1], torch.dtype) else query.dtype
    return query.new_empty(batch, length, heads, value.shape[3], dtype=autocast)


_LIBRARY.impl("layer_attention", _layer_attention, "CompositeExplicitAutograd")
torch.library.register_fake("relay_hf::layer_attention", _fake, lib=_LIBRARY)
