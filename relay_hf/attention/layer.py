"""One layer's attention in a relayed forward: it collects the layer's KV from the cache, and calls the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UnfitModelError
from ..kernels.plan import Plan
from ..model.attention_choice import users_implementation
from ..ops import attend, resolve_backend
from .context import ForwardContext

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..cache_utils import RowLayout


class AttentionRequest(NamedTuple):
    """The arguments of an attention module that are not tensors.

    Attributes:
        layer_idx: the cache layer that the module names.
        module: the name of its class.
        causal: it is causal.
        dropout: probability; must be 0.
        unknown: an argument of the module that the operator does not know; must be None.
    """

    layer_idx: int | None
    module: str
    causal: bool
    dropout: float
    unknown: str | None


class Operands(NamedTuple):
    """The tensors of a layer's attention: see `relay_attention_forward`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


class ScoreSettings(NamedTuple):
    """How a layer's scores are scaled, capped and extended by sinks: see `AttentionArguments`."""

    scaling: float | None
    softcap: float | None
    sinks: Tensor | None


def attend_layer(
    context: ForwardContext,
    request: AttentionRequest,
    config: PreTrainedConfig,
    operands: Operands,
    options: ScoreSettings,
) -> Tensor:
    """Attention `[B, T, Hq, Dv]` over a layer's segments and own KV.

    A forward that may run again goes on with zeros where another one raises, and is told so when it is left.

    Raises:
        RelayError: the layer asks for something that a relayed forward can't compute.
    """
    try:
        return _attend_layer(context, request, config, operands, options)
    except UnfitModelError as error:
        if not context.settings.may_rerun:
            raise
        context.seen.missed = context.seen.missed or error.with_traceback(None)
        query, value = operands.query, operands.value
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


def _attend_layer(
    context: ForwardContext,
    request: AttentionRequest,
    config: PreTrainedConfig,
    operands: Operands,
    options: ScoreSettings,
) -> Tensor:
    query, key, value, mask = operands
    cache, seen, step = context.cache, context.seen, context.settings.static_step
    if request.layer_idx is not None and cache.traceable and request.layer_idx not in seen.updated:
        # The cache's update was traced. Attention was not if torch.compile has reached its limit of graphs.
        key, value = cache.store(key, value, request.layer_idx)
    window = context.masks.window_of(mask)
    if (options.softcap is not None or options.sinks is not None) and users_implementation(config) == "sdpa":
        raise UnfitModelError(
            "sdpa leaves out the softcap or sinks of this model; load it with attn_implementation='eager'"
        )
    source = _source(context, request, config, key, window)
    reused = request.layer_idx in cache.reusing
    if step is not None:
        if seen.takes(source):
            cache.kv_layers[source].append(key, value, step.position)
        key, value = cache.kv_layers[source].own_tensors()
    how = {"scale": options.scaling, "sliding_window": window, "softcap": options.softcap, "sinks": options.sinks}
    device_type = query.device.type
    if not torch.is_autocast_enabled(device_type):
        return _attend(context, source, reused, query, key, value, **how)
    # Cast like stock's sdpa: all operands once, and nothing inside (the operator's sums stay in float32).
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        return _attend(context, source, reused, query.to(dtype), key.to(dtype), value.to(dtype), **how)


def _attend(
    context: ForwardContext, layer_idx: int, reused: bool, query: Tensor, key: Tensor, value: Tensor, **how: Any
) -> Tensor:
    layer, length, seen, settings = context.cache.layers[layer_idx], query.shape[2], context.seen, context.settings
    if length not in context.plans:
        # Layers that reuse keys and values may answer the last queries alone (Gemma 4's prefill).
        if context.plans and not (reused and length < min(context.plans)):
            raise UnfitModelError(f"layer {layer_idx} attends with other queries than the layers before it")
        context.plans[length] = _plan(settings.cache.rows, settings.own_mask, query, key)
    if settings.static_step is None and not reused and not all(map(_same_view, (key, value), layer.own())):
        seen.attends_stored = False
        if settings.capture is not None:
            settings.capture[layer_idx] = (key, value)
    try:
        backend = resolve_backend(settings.backend, query.device, query.dtype, max(query.shape[3], value.shape[3]))
    except RuntimeError as error:
        raise UnfitModelError(str(error)) from None
    seen.backends.add(backend)
    segments = [shared.segment for shared in layer.shared]
    return attend(context.plans[length], query, segments, key, value, backend=backend, **how)


def _same_view(one: Tensor, other: Tensor) -> bool:
    same_memory = one.data_ptr() == other.data_ptr() and one.dtype is other.dtype
    return same_memory and one.shape == other.shape and one.stride() == other.stride()


def _plan(rows: RowLayout, own_mask: Tensor | None, query: Tensor, key: Tensor) -> Plan:
    columns = key.shape[2]
    # It was read at the prefill: it is longer than the columns of a chunk, and shorter once tokens were generated.
    if own_mask is not None:
        own_mask = nn.functional.pad(own_mask, (0, columns - own_mask.shape[1]), value=True).to(query.device)
    return Plan(
        query.shape[0],
        query.shape[2],
        columns,
        shared_length=rows.shared_length,
        own_start=rows.own_start,
        own_mask=own_mask,
    )


def _source(
    context: ForwardContext, request: AttentionRequest, config: PreTrainedConfig, key: Tensor, window: int | None
) -> int:
    """The layer whose keys and values the module attends to; raises where the relay can't compute this."""
    layer_idx, cache, seen = request.layer_idx, context.cache, context.seen
    static = context.settings.static_step is not None
    source = seen.source(key, None if static else layer_idx)
    if source is None and static:
        raise UnfitModelError(f"layer {layer_idx} attends to other keys than it gave the cache")
    seen.names_layers &= layer_idx == source
    if layer_idx not in cache.reusing:
        # Several layers may run one module (Zamba), or one layer may run it several times (Dory): the keys tell which.
        layer_idx = source
    layer = None if source is None else cache.kv_layers.get(source)
    if layer_idx is None or source is None or layer is None:
        raise UnfitModelError(f"an attention module ({request.module}) names no layer of the cache")
    if layer_idx in seen.attended:
        raise UnfitModelError(f"layer {layer_idx} attends more than once in a forward")
    seen.attended.add(layer_idx)
    if request.dropout:
        raise UnfitModelError(f"attention dropout is active ({request.dropout})")
    if not request.causal and users_implementation(config) != "eager":
        # Implementations other than eager drop a causal mask and read this flag instead. So in a prompt without
        # padding such a layer sees later tokens too.
        raise UnfitModelError("a layer's attention is not causal")
    if request.unknown is not None:
        raise UnfitModelError(f"attention has an argument that the operator does not know, {request.unknown!r}")
    if not static and key.shape[2] != layer.own_length:
        raise UnfitModelError(f"layer {layer_idx} attends to other keys than the cache holds for it")
    if layer.sliding_window is not None and window is None:
        # Stock's cache drops tokens that have left the window, so decode steps see fewer than the mask says (Moshi).
        raise UnfitModelError(f"layer {layer_idx} has a window in the cache, and none in its attention mask")
    return source
