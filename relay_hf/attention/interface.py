"""Transformers' attention function, answered from the RelayCache of the forward that runs.

It is registered once under one name, with the mask function of `masks.py`. Where no relayed forward is active, both
call the functions that the user has chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RelayError
from ..model.attention_choice import ATTENTION_NAME, users_implementation
from ..model.upstream.attention import (
    POSITIONAL_ARGUMENTS,
    AttentionArguments,
    attention_function,
    layer_index,
    register_attention,
)
from .compiled import traced
from .context import active_context
from .layer import AttentionRequest, Operands, ScoreSettings, attend_layer
from .masks import relay_mask


def register() -> None:
    """Make the name known to Transformers, which has no unregister. A second call changes nothing."""
    register_attention(ATTENTION_NAME, relay_attention_forward, relay_mask)


def relay_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *positional: float | None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the layer's segments and own KV.

    Args:
        module: the attention module, which names the cache layer.
        query: `[B, Hq, T, D]`.
        key: `[B, Hkv, S, D]`, own keys as attention sees them.
        value: `[B, Hkv, S, Dv]`.
        attention_mask: the mask that `relay_mask` gave the model for this kind of layer.
        *positional: the dropout, and the scaling. Models give them by name. kvpress wraps each registered attention
            function in one that does not.
        **arguments: the other arguments that the module passes along; see `AttentionArguments`.

    Returns:
        The output, `[B, T, Hq, Dv]`, and no weights.

    Raises:
        RelayError: the layer asks for something that a relayed forward can't compute.
    """
    if positional:
        arguments.update(zip(POSITIONAL_ARGUMENTS[: len(positional)], positional, strict=True))
    # Not `is_compiling`, which is true in every thread of a process while one of them compiles.
    compiling = torch.compiler.is_dynamo_compiling()
    context = None if compiling else active_context()
    if context is None and not compiling:
        return _users_attention(module)(module, query, key, value, attention_mask, **arguments)
    given = AttentionArguments.of(module, arguments)
    request = AttentionRequest(layer_index(module), type(module).__name__, given.causal, given.dropout, given.unknown)
    operands = Operands(query, key, value, attention_mask)
    options = ScoreSettings(given.scaling, given.softcap, given.sinks)
    if context is None:
        return traced(request, operands, options), None
    return attend_layer(context, request, module.config, operands, options), None


def _users_attention(module: nn.Module) -> Callable:
    """The attention function that the model would call without relay_hf, also one that its own file overrides."""
    name = users_implementation(module.config)
    found = attention_function(module, name)
    if found is None:
        raise RelayError(f"no attention implementation {name!r} for {type(module).__name__}")
    return found
