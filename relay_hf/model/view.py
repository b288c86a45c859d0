"""A patched model as it is when a call of it begins: its modules, its configuration, its forward's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..ops import resolve_backend
from .architectures import Architecture, architecture_of
from .attention_choice import attention_configs
from .device import ComputeContext, autocast_of, device_of, store_key
from .fingerprint.module_state import all_modules
from .upstream.models import default_cache, text_config
from .upstream.names import cache_name

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

# The arguments of forwards, by function: to work them out takes 0.1 ms.
_arguments: WeakKeyDictionary[Callable[..., Any], Mapping[str, inspect.Parameter]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class ModelView:
    """What is known of a patched model.

    Attributes:
        model: the model.
        modules: all its modules, each once.
        configs: the configurations that its modules read their attention implementation from.
        text_config: the configuration of its decoder.
        architecture: what is known of its type.
        forward_inputs: the arguments of its forward, by name.
        cache_name: what its forward calls its cache.
    """

    model: PreTrainedModel
    modules: list[nn.Module]
    configs: list[PreTrainedConfig]
    text_config: PreTrainedConfig
    architecture: Architecture
    forward_inputs: Mapping[str, inspect.Parameter]
    cache_name: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelView:
        """Look at the model."""
        modules, config, inputs = all_modules(model), text_config(model), _forward_inputs(model)
        architecture = architecture_of(config)
        return cls(model, modules, attention_configs(modules), config, architecture, inputs, cache_name(inputs))

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return device_of(self.model)

    @property
    def context(self) -> ComputeContext:
        """What its numbers would depend on now, beside its weights."""
        return ComputeContext.of(self.model)

    @property
    def store_key(self) -> Hashable:
        """What tells apart the kept prefixes that a call can use."""
        return store_key(self.model)

    @property
    def embedding(self) -> nn.Module:
        """The module that turns token ids into vectors."""
        return self.model.get_input_embeddings()

    def default_cache(self) -> DynamicCache | None:
        """The cache that generate() makes for the model; None where the model makes its own."""
        return default_cache(self.model, self.forward_inputs)

    def backend(self, asked: str, device: torch.device | None = None) -> str:
        """What is expected to compute relayed attention where `asked` is asked for.

        `device`: where the model would compute; None: where it is.

        Raises:
            RuntimeError: the backend that is asked for by name can't.
        """
        return resolve_backend(asked, device or self.device, autocast_of(self.model) or self.model.dtype)

    def is_own_hook(self, hook: object) -> bool:
        """Whether a forward hook is one that `patch_model` has put on this model."""
        handle = vars(self.model).get("relay")
        return handle is not None and getattr(hook, "__self__", None) is handle


def _forward_inputs(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    forward = model.forward
    function = getattr(forward, "__func__", forward)
    try:
        found = _arguments.get(function)
    except TypeError:  # no weak reference to such a callable
        return inspect.signature(forward).parameters
    if found is None:
        found = _arguments[function] = inspect.signature(forward).parameters
    return found
