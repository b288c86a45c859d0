"""Transformers' caches and their layers: their kinds, and the fields that relay_hf reads and writes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, cache_utils
from transformers.cache_utils import CacheLayerMixin as CacheLayerMixin
from transformers.cache_utils import LinearAttentionLayer as LinearAttentionLayer

# Kinds of layers of a DynamicCache, by their content. A subclass may hold more, so it does not count as the kind.
KV_LAYERS = (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer)
STATE_LAYERS = (LinearAttentionLayer,)
BOTH_LAYERS = (
    cache_utils.LinearAttentionAndFullAttentionLayer,
    cache_utils.LinearAttentionAndSlidingWindowAttentionLayer,
)
# Since 5.23 a layer that keeps nothing has a place in the cache. Before, it had none, or that of a recurrent layer.
EMPTY_LAYERS = (cache_utils.DummyLayer,) if hasattr(cache_utils, "DummyLayer") else ()

States = dict[int, Tensor]

# generate() sets this mark on a cache that the caller has given. It returns such a cache, and leaves no token in it
# that it does not return.
USERS_MARK = "_is_user_defined"


def is_users(cache: Cache | None) -> bool:
    """Whether generate() was given this cache by its caller."""
    return bool(getattr(cache, USERS_MARK, False))


def was_looked_at(cache: Cache | None) -> bool:
    """Whether generate() has set or cleared the mark on this cache."""
    return hasattr(cache, USERS_MARK)


def mark_as_users(cache: Cache) -> None:
    """Let generate() treat a cache like one that its caller has given."""
    setattr(cache, USERS_MARK, True)


def is_plain(cache: Cache) -> bool:
    """Whether a cache is a DynamicCache that keeps all it holds on the model's device."""
    return type(cache) is DynamicCache and not cache.offloading


def lists_layers(cache: Cache) -> bool:
    """Whether a DynamicCache lists all layers of a model, none filled.

    A cache that is made without a configuration lists only the layers that have stored something.
    """
    filled = any(getattr(layer, "is_initialized", False) for layer in cache.layers)
    return type(cache) is DynamicCache and bool(cache.layers) and not filled


def window_of_layer(layer: Any) -> int | None:
    """The sliding window (tokens) of a layer of a cache, or None."""
    return getattr(layer, "sliding_window", None)


def keeps_state(cache: Cache | None) -> bool:
    """Whether any layer of a cache, ours or Transformers', is recurrent."""
    return cache is not None and any(isinstance(layer, LinearAttentionLayer) for layer in cache.layers)


# The classes of the cache that generate() makes. A relayed call has its own in their place.
CACHE_CLASSES = (Cache, DynamicCache, *KV_LAYERS)


def attending(cache: Cache | None) -> float:
    """The share of a cache's layers that keep keys and values."""
    layers = [] if cache is None else cache.layers
    return sum(isinstance(layer, CacheLayerMixin) for layer in layers) / max(len(layers), 1)


def stock_tensors(layer: Any) -> list[Tensor]:
    """The tensors that a layer of Transformers' own holds: keys and values, states, or both."""
    kv = [layer.keys, layer.values] if isinstance(layer, CacheLayerMixin) and layer.is_initialized else []
    states = states_of(layer) if isinstance(layer, LinearAttentionLayer) else ()
    return [*kv, *(tensor for each in states for tensor in each.values())]


def stock_layer(window: int | None, states: int | None = None) -> Any:
    """An empty layer of a DynamicCache for keys and values, with a window (tokens), and for so many states beside."""
    kinds, given = (KV_LAYERS, {}) if states is None else (BOTH_LAYERS, {"number_of_states": states})
    return kinds[0](**given) if window is None else kinds[1](sliding_window=window, **given)


def states_of(layer: LinearAttentionLayer) -> tuple[States, States]:
    """The states that a recurrent layer has, by number: of its convolutions, and of its recurrences."""
    conv, recurrent = (
        {index: tensor for index, tensor in states.items() if tensor is not None}
        for states in (layer.conv_states, layer.recurrent_states)
    )
    return conv, recurrent


def holds_state(layer: LinearAttentionLayer) -> bool:
    """Whether a recurrent layer has a state, from a forward or from `install_states`."""
    return any(layer.has_previous_state.values())


def replace_states(layer: LinearAttentionLayer, conv: States, recurrent: States) -> None:
    """Replace the tensors of a recurrent layer's states. The layer's notes about them stay."""
    layer.conv_states.update(conv)
    layer.recurrent_states.update(recurrent)


def install_states(layer: LinearAttentionLayer, conv: States, recurrent: States) -> None:
    """Give a recurrent layer states, as if forwards had left them."""
    for index, tensor in conv.items():
        layer.conv_states[index], layer.conv_kernel_size[index] = tensor, tensor.shape[-1]
        layer.is_conv_states_initialized[index] = True
        layer.dtype, layer.device = tensor.dtype, tensor.device
    for index, tensor in recurrent.items():
        layer.recurrent_states[index] = tensor
        layer.is_recurrent_states_initialized[index] = True
    layer.has_previous_state.update(dict.fromkeys({*conv, *recurrent}, True))
