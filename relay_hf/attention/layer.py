"""One layer's attention in a relayed forward: from what the frame's cache holds for it to the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UnfitForwardError, UnfitModelError
from ..kernels.plan import Plan
from ..model.attention_choice import users_implementation
from ..ops import attend, resolve_backend
from .context import ForwardContext
from .masks import window_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class AttentionRequest(NamedTuple):
    """What an attention module asks for, tensors apart.

    Attributes:
        layer_idx: the cache layer that the module names.
        module: the name of its class.
        causal: it is causal.
        dropout: probability; must be 0.
        unknown: an argument that it passes on and the operator does not know; must be None.
    """

    layer_idx: int | None
    module: str
    causal: bool
    dropout: float
    unknown: str | None


def attend_layer(
    frame: ForwardContext,
    asked: AttentionRequest,
    config: PreTrainedConfig,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention `[B, T, Hq, Dv]` over a layer's segments and own KV; for the tensors see `relay_attention_forward`.

    Raises:
        RelayError: the layer asks for something that a relayed forward can't give.
    """
    if asked.layer_idx is not None and frame.cache.traceable and asked.layer_idx not in frame.updates:
        # The cache's update was traced. Attention need not have been: past torch.compile's limit of graphs it is not.
        key, value = frame.cache.store(key, value, asked.layer_idx)
    window = window_of(frame, mask)
    if (softcap is not None or sinks is not None) and users_implementation(config) == "sdpa":
        raise UnfitModelError(
            "sdpa leaves out the softcap or sinks of this model; load it with attn_implementation='eager'"
        )
    source = _check(frame, asked, config, key, window)
    reused = asked.layer_idx in frame.cache.reusing
    if frame.decoding is not None:
        if frame.takes(source):
            frame.cache.kv_layers[source].append(key, value, frame.decoding.position)
        key, value = frame.cache.kv_layers[source].own_tensors()
    how = {"scale": scaling, "sliding_window": window, "softcap": softcap, "sinks": sinks}
    device_type = query.device.type
    if not torch.is_autocast_enabled(device_type):
        return _attend(frame, source, reused, query, key, value, **how)
    # As stock's sdpa is cast: all operands once, and nothing inside (the operator's sums stay in float32).
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        return _attend(frame, source, reused, query.to(dtype), key.to(dtype), value.to(dtype), **how)


def _attend(
    frame: ForwardContext, layer_idx: int, reused: bool, query: Tensor, key: Tensor, value: Tensor, **how: Any
) -> Tensor:
    layer, length = frame.cache.layers[layer_idx], query.shape[2]
    if length not in frame.plans:
        # Layers that reuse keys and values may answer the last queries alone (Gemma 4's prefill).
        if frame.plans and not (reused and length < min(frame.plans)):
            raise UnfitModelError(f"layer {layer_idx} attends with other queries than the layers before it")
        frame.plans[length] = _plan(frame, query, key)
    if frame.decoding is None and not reused and not all(map(_same_view, (key, value), layer.own())):
        frame.attends_stored = False
        if frame.capture is not None:
            frame.capture[layer_idx] = (key, value)
    try:
        backend = resolve_backend(frame.backend, query.device, query.dtype, max(query.shape[3], value.shape[3]))
    except RuntimeError as error:
        raise UnfitModelError(str(error)) from None
    frame.backends.add(backend)
    segments = [shared.segment for shared in layer.shared]
    return attend(frame.plans[length], query, segments, key, value, backend=backend, **how)


def _same_view(one: Tensor, other: Tensor) -> bool:
    same_memory = one.data_ptr() == other.data_ptr() and one.dtype is other.dtype
    return same_memory and one.shape == other.shape and one.stride() == other.stride()


def _plan(frame: ForwardContext, query: Tensor, key: Tensor) -> Plan:
    rows, own_mask, columns = frame.cache.rows, frame.own_mask, key.shape[2]
    if own_mask is not None:  # read at the prefill: longer than a chunk of it, shorter than what was generated since
        own_mask = nn.functional.pad(own_mask, (0, columns - own_mask.shape[1]), value=True).to(query.device)
    return Plan(
        query.shape[0],
        query.shape[2],
        columns,
        shared_length=rows.shared_length,
        own_start=rows.own_start,
        own_mask=own_mask,
    )


def _check(
    frame: ForwardContext, asked: AttentionRequest, config: PreTrainedConfig, key: Tensor, window: int | None
) -> int:
    """Which layer's keys and values the module attends to; an error where it can't be served."""
    layer_idx, cache = asked.layer_idx, frame.cache
    source = frame.source(key, layer_idx if frame.decoding is None else None)
    if source is None and frame.decoding is not None:
        raise UnfitModelError(f"layer {layer_idx} attends to other keys than it gave the cache")
    frame.names_layers &= layer_idx == source
    if layer_idx not in cache.reusing:
        layer_idx = (
            source  # a module may be run by several layers (Zamba), or several times (Dory): the keys tell which
        )
    layer = None if source is None else cache.kv_layers.get(source)
    if layer_idx is None or source is None or layer is None:
        raise UnfitModelError(f"an attention module ({asked.module}) names no layer of the cache")
    if layer_idx in frame.hits:
        raise UnfitModelError(f"layer {layer_idx} attends more than once in a forward")
    frame.hits.add(layer_idx)
    if asked.dropout:
        raise UnfitForwardError(f"attention dropout is active ({asked.dropout})")
    if not asked.causal and users_implementation(config) != "eager":
        # Others than eager leave a causal mask out and go by this: a prompt without padding is seen from both sides.
        raise UnfitModelError("a layer's attention is not causal")
    if asked.unknown is not None:
        raise UnfitForwardError(f"attention has an argument that the operator does not know, {asked.unknown!r}")
    if frame.decoding is None and key.shape[2] != layer.own_length:
        raise UnfitModelError(f"layer {layer_idx} attends to other keys than the cache holds for it")
    if layer.sliding_window is not None and window is None:
        # Stock's cache drops what has left the window, so that decoding sees less than the mask says (Moshi).
        raise UnfitModelError(f"layer {layer_idx} has a window in the cache, and none in its attention mask")
    return source
