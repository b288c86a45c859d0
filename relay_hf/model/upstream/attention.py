"""Transformers' attention interface: where implementations are registered, and how a model names its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASK_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ATTENTION_FUNCTIONS

from .names import HARMLESS_ARGUMENTS

# The field behind a configuration's `_attn_implementation`. It is written directly because the property's setter also
# overwrites the choice of sub-configurations, which are selected and restored one by one.
ATTENTION_FIELD = "_attn_implementation_internal"
# Eager attention is in no registry: each model's file has its own function of this name.
_EAGER = "eager_attention_forward"
_REGISTRY = "ALL_ATTENTION_FUNCTIONS"
POSITIONAL_ARGUMENTS = ("dropout", "scaling")  # of each registered attention function, behind the mask


def register_attention(name: str, attention: Callable[..., Any], mask: Callable[..., Any]) -> None:
    """Make an attention implementation known, with its mask function. There is no unregister.

    Without a mask function of its own the model gets no mask, and padding is ignored silently.
    """
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)


def names_attention(config: PreTrainedConfig) -> bool:
    """Whether a configuration has a field for its attention implementation."""
    return hasattr(config, ATTENTION_FIELD)


def registered_attention(name: str | None) -> Any:
    """The attention function of an implementation, or None. Eager attention has its function in each model's file."""
    return ATTENTION_FUNCTIONS.get(name)


def registered_mask(name: str | None) -> Any:
    """The function that makes masks for an implementation, or None: then attention gets none."""
    return MASK_FUNCTIONS.get(name)


def registered_experts(config: PreTrainedConfig) -> tuple[str, Any] | None:
    """The name of the implementation of experts that a configuration names, and its function; None if it names none."""
    name = str(getattr(config, "_experts_implementation", None))
    function = EXPERTS_FUNCTIONS.get(name)
    return None if function is None else (name, function)


def eager_attention(kind: type[nn.Module]) -> Any:
    """The eager attention function of the file that a module's class is from, or None."""
    return vars(sys.modules.get(kind.__module__, nn)).get(_EAGER)


def attention_function(module: nn.Module, name: str | None) -> Callable[..., Any] | None:
    """The function that a module would call for an implementation: its file may have a registry of its own."""
    namespace: Mapping[str, Any] = vars(sys.modules[type(module).__module__])
    registry = namespace.get(_REGISTRY, ATTENTION_FUNCTIONS)
    found: Callable[..., Any] | None = registry.get(name, namespace.get(_EAGER))
    return found


def layer_index(module: nn.Module) -> int | None:
    """The layer of the cache that an attention module names."""
    return getattr(module, "layer_idx", None)


class AttentionArguments(NamedTuple):
    """The arguments that an attention module passes along, beside its operands and its mask.

    A sliding window is not among them, because the mask says what the layer sees, as for stock's sdpa and eager.

    Attributes:
        dropout: probability.
        scaling: factor on the scores; None is `D ** -0.5`.
        softcap: scores are capped by `softcap * tanh(scores / softcap)`, or None.
        sinks: `[Hq]`, attention sinks, or None.
        causal: the layer is causal.
        unknown: the name of an argument that may change the result in an unknown way, or None.
    """

    dropout: float
    scaling: float | None
    softcap: float | None
    sinks: Tensor | None
    causal: bool
    unknown: str | None

    @classmethod
    def of(cls, module: nn.Module, given: Mapping[str, Any]) -> AttentionArguments:
        """Read them from the arguments that `module` passes along."""
        causal = given.get("is_causal")
        if causal is None:
            causal = getattr(module, "is_causal", True)
        unknown = next(
            (name for name, value in given.items() if value is not None and name not in KNOWN_ARGUMENTS), None
        )
        return cls(
            given.get("dropout", 0.0),
            given.get("scaling"),
            given.get("softcap"),
            given.get("s_aux"),
            causal is not False,
            unknown,
        )


KNOWN_ARGUMENTS = HARMLESS_ARGUMENTS | {"dropout", "scaling", "sliding_window", "softcap", "s_aux"}
