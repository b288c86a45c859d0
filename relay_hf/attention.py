"""Transformers' attention and mask functions, answered from the active frame's RelayCache.

Registered once under one name. Where no relayed forward is active, both hand over to what the user had chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .frame import Frame, RelayError, UnfitModelError, active_frame
from .kernels.plan import Plan
from .ops import attend, resolve_backend
from .selection import ATTENTION_NAME, users_implementation

# What attention modules pass along that changes nothing in the mathematics of a forward that is relayed. Anything else
# that is not None stops the relay: an argument unknown here may bias, mask or drop.
_HARMLESS = frozenset(
    {
        "cache_position",
        "is_causal",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "tokenizer",
        "use_cache",
    }
)


def register() -> None:
    """Make the name known to Transformers. It has no unregister, and a second call changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, relay_attention_forward)
    AttentionMaskInterface.register(ATTENTION_NAME, relay_mask)


def relay_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the layer's segments and own KV.

    Args:
        module: the attention module; its `layer_idx` names the cache layer.
        query: `[B, Hq, T, D]`.
        key: `[B, Hkv, S, D]`, own keys as attention sees them.
        value: `[B, Hkv, S, Dv]`.
        attention_mask: what `relay_mask` gave the model for this kind of layer.
        dropout: must be 0.
        scaling: factor on the scores; None is `D ** -0.5`.
        sliding_window: not read: the mask says what the layer sees, as for stock's sdpa and eager.
        softcap: scores are capped by `softcap * tanh(scores / softcap)`.
        s_aux: `[Hq]`, attention sinks.

    Returns:
        The output, `[B, T, Hq, Dv]`, and no weights.

    Raises:
        RelayError: the layer asks for something that a relayed forward can't give.
    """
    frame = active_frame.get()
    if frame is None:
        implementation = _users_attention(module)
        extra = {"sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        kwargs.update({name: given for name, given in extra.items() if given is not None})
        return implementation(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    window = _window(frame, attention_mask)
    if (softcap is not None or s_aux is not None) and users_implementation(module.config) == "sdpa":
        raise UnfitModelError(
            "sdpa leaves out the softcap or sinks of this model; load it with attn_implementation='eager'"
        )
    source = _check_call(frame, module, key, window, dropout, kwargs)
    reused = getattr(module, "layer_idx", None) in frame.cache.reusing
    how = {"scale": scaling, "sliding_window": window, "softcap": softcap, "sinks": s_aux}
    device_type = query.device.type
    if not torch.is_autocast_enabled(device_type):
        return _attend(frame, source, reused, query, key, value, **how), None
    # As stock's sdpa is cast: all operands once, and nothing inside (the operator's sums stay in float32).
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, enabled=False):
        return _attend(frame, source, reused, query.to(dtype), key.to(dtype), value.to(dtype), **how), None


def _attend(
    frame: Frame, layer_idx: int, reused: bool, query: Tensor, key: Tensor, value: Tensor, **how: Any
) -> Tensor:
    layer, length = frame.cache.layers[layer_idx], query.shape[2]
    if length not in frame.plans:
        # Layers that reuse keys and values may answer the last queries alone (Gemma 4's prefill).
        if frame.plans and not (reused and length < min(frame.plans)):
            raise UnfitModelError(f"layer {layer_idx} attends with other queries than the layers before it")
        frame.plans[length] = _plan(frame, query, key)
    if frame.capture is not None and not reused and not all(map(_same_view, (key, value), layer.own())):
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


def relay_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The mask of a relayed forward: None where it is causal, a token of recognition where it has a window.

    No mask is built: which own columns a row may see is known to the frame, and a window is arithmetic on positions.
    Attention under any other pattern raises.
    """
    frame = active_frame.get()
    if frame is None:
        users_mask = ALL_MASK_ATTENTION_FUNCTIONS.get(users_implementation(kwargs["config"]))
        if users_mask is None:
            return None  # as Transformers has it for an implementation that registered no mask
        return users_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            device=device,
            **kwargs,
        )
    if _same_function(mask_function, causal_mask_function):
        frame.causal = True
        return None
    window = None
    if local_size is not None and _same_function(mask_function, sliding_window_causal_mask_function(local_size)):
        window = local_size
    # 4-D like a real mask, so that a model may slice it, but one element a query in memory. Of a pattern that the
    # operator does not know it is made too: BART's kin make one for cross-attention that they don't have.
    queries = torch.ones(q_length, dtype=torch.bool, device=device)
    frame.windows[queries.untyped_storage().data_ptr()] = (queries, window)
    return queries[None, None, :, None].expand(batch_size, 1, q_length, kv_length)


def _plan(frame: Frame, query: Tensor, key: Tensor) -> Plan:
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


def _window(frame: Frame, mask: Tensor | None) -> int | None:
    if mask is None and frame.causal:
        return None
    queries, window = (
        (None, None) if mask is None else frame.windows.get(mask.untyped_storage().data_ptr(), (None, None))
    )
    # A slice has the same storage: models drop queries that need no answer, but never the last ones.
    if mask is None or queries is None or mask.storage_offset() + mask.shape[2] != len(queries):
        raise UnfitModelError("the model makes or rewrites its attention masks in its own way")
    if window is None:
        raise UnfitModelError("the model masks attention in a way that is neither causal nor a sliding window")
    return window


def _check_call(
    frame: Frame, module: nn.Module, key: Tensor, window: int | None, dropout: float, kwargs: dict[str, Any]
) -> int:
    """Which layer's keys and values the module attends to; an error where it can't be served."""
    layer_idx, cache = getattr(module, "layer_idx", None), frame.cache
    source = frame.source(key, layer_idx)
    if layer_idx not in cache.kv_layers and layer_idx not in cache.reusing:
        layer_idx = source  # a module that several layers run (Zamba)
    layer = None if source is None else cache.kv_layers.get(source)
    if layer_idx is None or source is None or layer is None:
        raise UnfitModelError(f"an attention module ({type(module).__name__}) names no layer of the cache")
    if layer_idx in frame.hits:
        raise UnfitModelError(f"layer {layer_idx} attends more than once in a forward")
    frame.hits.add(layer_idx)
    if dropout:
        raise RelayError(f"attention dropout is active ({dropout})")
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if causal is False and users_implementation(module.config) != "eager":
        # Others than eager leave a causal mask out and go by this: a prompt without padding is seen from both sides.
        raise UnfitModelError("a layer's attention is not causal")
    for name, given in kwargs.items():
        if given is not None and name not in _HARMLESS:
            raise RelayError(f"attention has an argument that the operator does not know, {name!r}")
    if key.shape[2] != layer.own_length:
        raise UnfitModelError(f"layer {layer_idx} attends to other keys than the cache holds for it")
    if layer.sliding_window is not None and window is None:
        # Stock's cache drops what has left the window, so that decoding sees less than the mask says (Moshi).
        raise UnfitModelError(f"layer {layer_idx} has a window in the cache, and none in its attention mask")
    return source


def _same_function(one: Any, other: Any) -> bool:
    """Whether two functions run the same code over the same captured values (Transformers composes masks so)."""
    if not (isinstance(one, FunctionType) and isinstance(other, FunctionType)):
        return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)
    if one.__code__ is not other.__code__:
        return False
    mine, theirs = _captured(one.__closure__), _captured(other.__closure__)
    return len(mine) == len(theirs) and all(_same_function(a, b) for a, b in zip(mine, theirs, strict=True))


def _captured(closure: tuple[CellType, ...] | None) -> list[Any]:
    values: list[Any] = []
    for cell in closure or ():
        content = cell.cell_contents
        values.extend(content if isinstance(content, tuple) else [content])
    return values


def _users_attention(module: nn.Module) -> Callable:
    """The attention function that the model would have called without us, its file's own overrides included."""
    namespace = vars(sys.modules[type(module).__module__])
    interface = namespace.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    name = users_implementation(module.config)
    found = interface.get(name, namespace.get("eager_attention_forward"))
    if found is None:
        raise RelayError(f"no attention implementation {name!r} for {type(module).__name__}")
    return found
