"""A patched model as it is when a call of it begins: its modules, its configuration, its forward's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..ops import resolve_backend
from .architectures import Architecture, architecture_of
from .attention_choice import attention_configs
from .device import ComputeContext, autocast_of, device_of, store_key
from .modules import all_modules
from .upstream.models import default_cache, text_config
from .upstream.names import cache_name

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

# The arguments of forwards, by function. They are kept, because to find them takes 0.1 ms.
_arguments: WeakKeyDictionary[Callable[..., Any], Mapping[str, inspect.Parameter]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class ModelView:
    """The facts about a patched model.

    Attributes:
        model: the model.
        modules: all its modules, each once.
        configs: the configurations that its modules read their attention implementation from.
        text_config: the configuration of its decoder.
        architecture: the row of its type in the table of architectures.
        forward_inputs: the arguments of its forward, by name.
        cache_name: the name of its forward's argument for the cache.
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

    @cached_property
    def names(self) -> Mapping[nn.Module, str]:
        """The name of each module, as `model.named_modules()` has it; that of the model itself is empty."""
        return {module: name for name, module in self.model.named_modules()}

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return device_of(self.model)

    @property
    def context(self) -> ComputeContext:
        """The compute context of a forward that would run now."""
        return ComputeContext.of(self.model)

    @property
    def store_key(self) -> Hashable:
        """The key of the kept prefixes that a call can use now."""
        return store_key(self.model)

    @property
    def embedding(self) -> nn.Module:
        """The module that turns token ids into vectors."""
        return self.model.get_input_embeddings()

    def default_cache(self) -> DynamicCache | None:
        """The cache that generate() makes for the model; None where the model makes its own."""
        return default_cache(self.model, self.forward_inputs)

    def backend(self, asked: str, device: torch.device | None = None) -> str:
        """The backend that would compute relayed attention if the options say `asked`.

        `device`: the device that the model would compute on; None: its own.

        Raises:
            RuntimeError: the backend that is asked for by name can't compute for this model.
        """
        return resolve_backend(asked, device or self.device, autocast_of(self.model) or self.model.dtype)

    def is_own_hook(self, hook: object) -> bool:
        """Whether a forward hook is one that `patch_model` has put on this model."""
        hooks = getattr(vars(self.model).get("relay"), "_hooks", None)
        return hooks is not None and getattr(hook, "__self__", None) is hooks

    @property
    def has_other_hooks(self) -> bool:
        """Whether somebody else has put forward hooks on the model itself."""
        hooks = (*self.model._forward_pre_hooks.values(), *self.model._forward_hooks.values())
        return not all(map(self.is_own_hook, hooks))


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
