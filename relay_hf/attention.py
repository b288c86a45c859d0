"""Transformers' attention function, answered from the active frame's RelayCache.

Registered once under one name, with the mask function of `masks.py`. Where no relayed forward is active, both hand over
to what the user had chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .compiled import traced
from .frame import RelayError, active_frame
from .layer_attention import Asked, attend_layer
from .masks import relay_mask
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
    layer = Asked(
        getattr(module, "layer_idx", None), type(module).__name__, _is_causal(module, kwargs), dropout, _unknown(kwargs)
    )
    if torch.compiler.is_compiling():
        return traced(layer, query, key, value, attention_mask, scaling, softcap, s_aux), None
    frame = active_frame.get()
    if frame is None:
        implementation = _users_attention(module)
        extra = {"sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        kwargs.update({name: given for name, given in extra.items() if given is not None})
        return implementation(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    return attend_layer(frame, layer, module.config, query, key, value, attention_mask, scaling, softcap, s_aux), None


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return (getattr(module, "is_causal", True) if given is None else given) is not False


def _unknown(kwargs: dict[str, Any]) -> str | None:
    """The name of an argument that the operator does not know, or None."""
    for name, given in kwargs.items():
        if given is not None and name not in _HARMLESS:
            return name
    return None


def _users_attention(module: nn.Module) -> Callable:
    """The attention function that the model would have called without us, its file's own overrides included."""
    namespace = vars(sys.modules[type(module).__module__])
    interface = namespace.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    name = users_implementation(module.config)
    found = interface.get(name, namespace.get("eager_attention_forward"))
    if found is None:
        raise RelayError(f"no attention implementation {name!r} for {type(module).__name__}")
    return found
