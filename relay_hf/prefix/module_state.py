"""What a forward reads of its modules beside parameters and buffers: settings, adapters, code, configurations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..selection import ATTENTION_FIELD, attention_configs, users_implementation

# Attributes of peft's tuner layers that decide what a forward adds; read from any module that has them.
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
PLAIN = (bool, int, float, str)
_FUNCTIONS = (FunctionType, BuiltinFunctionType, partial)
_SETTINGS = frozenset({*PLAIN, *_FUNCTIONS, list, tuple, torch.dtype, torch.device})
_SEEN = _SETTINGS | {Tensor}
# Settings that say nothing of what a module computes: a path, a length that was seen, hooks that are there but idle.
PASSING = frozenset({"_output_capturing_hooks_installed", "max_seq_len_cached", "name_or_path"})

PlaceInModel = tuple[int, str]


def attributes(modules: Sequence[nn.Module]) -> tuple[list[Any], dict[PlaceInModel, Tensor]]:
    """Plain attributes of modules, in order.

    Returns:
        Settings: numbers, names, functions, dtypes, devices, and lists and tuples of such; and tensors that are
        neither parameters nor buffers, by the index of their module and their name.
    """
    # By a comprehension, and names only where there is a tensor: of 1,500 modules, 36,000 attributes are looked at.
    found = [
        value
        for module in modules
        for name, value in module.__dict__.items()
        if type(value) in _SEEN and name not in PASSING
    ]
    settings: list[Any] = []
    tensors = False
    for value in found:
        kind = type(value)
        if kind is Tensor:
            tensors = True
        elif kind is list or kind is tuple:  # as they are now: they may be changed in place
            settings.append([each if type(each) in PLAIN else id(each) for each in value])
        else:
            settings.append(value)
    if not tensors:
        return settings, {}
    places = ((index, *item) for index, module in enumerate(modules) for item in module.__dict__.items())
    # A sparse one, or one on no device, has no elements to look at.
    return settings, {
        (index, name): value
        for index, name, value in places
        if type(value) is Tensor and name not in PASSING and value.layout is torch.strided and not value.is_meta
    }


def module_state(modules: Sequence[nn.Module]) -> list[Any]:
    """Modules, their classes and what those run, adapters, and configurations."""
    state: list[Any] = [*map(id, modules), *map(type, modules)]
    state += [getattr(kind, "forward", None) for kind in dict.fromkeys(map(type, modules))]
    state += adapter_state(modules)
    for config in attention_configs(modules):
        fields = {name: value for name, value in vars(config).items() if name != ATTENTION_FIELD}
        state += (repr(fields), users_implementation(config))
    return state


def adapter_state(modules: Sequence[nn.Module]) -> list[str]:
    """What of peft's layers decides what a forward adds; nothing of a model without."""
    tuned = (module.__dict__ for module in modules if "_active_adapter" in module.__dict__)
    return [repr(members.get(name)) for members in tuned for name in _ADAPTER_STATE]


def structure(modules: Sequence[nn.Module]) -> tuple[list[Any], list[Any]]:
    """What a CUDA graph of a forward has in it for good.

    Returns:
        Where weights, buffers and other tensors of modules lie, not what they hold; and what else a forward reads:
        plain settings of modules, adapters, and the configuration.
    """
    settings, others = attributes(modules)
    tensors = [t for module in modules for part in (module._parameters, module._buffers) for t in part.values()]
    places = [
        mark
        for t in (*tensors, *others.values())
        if t is not None
        for mark in (id(t), t.data_ptr(), t.dtype, t.shape, t.stride())
    ]
    return places, settings + module_state(modules)
