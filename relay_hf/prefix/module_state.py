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
_LISTS = (list, tuple)
_SEEN = frozenset({*PLAIN, *_FUNCTIONS, *_LISTS, torch.dtype, torch.device, Tensor})
# Settings that say nothing of what a module computes: a path, a length that was seen, hooks that are there but idle.
PASSING = frozenset({"_output_capturing_hooks_installed", "max_seq_len_cached", "name_or_path"})

_MODULE, _LINEAR = [*vars(nn.Module())], len(vars(nn.Linear(1, 1, device="meta")))

PlaceInModel = tuple[int, str]


def all_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, each once, level by level: a quarter of the time of `model.modules()`."""
    found = level = dict.fromkeys([model])
    while level:
        below = (child for module in level for child in module._modules.values())
        level = dict.fromkeys(child for child in below if child is not None and child not in found)
        found = found | level
    return [*found]


def attributes(modules: Sequence[nn.Module]) -> tuple[list[Any], dict[PlaceInModel, Tensor]]:
    """Plain attributes of modules, in order.

    Returns:
        Settings: numbers, names, functions, dtypes, devices, and lists and tuples of such; and tensors that are
        neither parameters nor buffers, by the index of their module and their name.
    """
    # By a comprehension, and by their names: of 1,400 modules, 5,000 attributes are looked at.
    dictionaries = [m.__dict__ for m in modules if type(m) is not nn.Linear or _changed_linear(m)]
    found = [value for own in dictionaries for name in _own_names(own) if type(value := own[name]) in _SEEN]
    settings = [
        # Lists as they are now: they may be changed in place.
        [each if type(each) in PLAIN else id(each) for each in value] if type(value) in _LISTS else value
        for value in found
        if type(value) is not Tensor
    ]
    if len(settings) == len(found):
        return settings, {}
    # A sparse one, or one on no device, has no elements to look at.
    return settings, {
        (index, name): value
        for index, module in enumerate(modules)
        for name, value in module.__dict__.items()
        if type(value) is Tensor and name not in PASSING and value.layout is torch.strided and not value.is_meta
    }


def _changed_linear(module: nn.Linear) -> bool:
    """Whether it has an attribute beyond those of its class, none of which its forward reads. Most modules are such."""
    members = module.__dict__
    return len(members) - ("_is_hf_initialized" in members) != _LINEAR


def _own_names(members: dict[str, Any]) -> list[str]:
    """Names of a module's attributes but for those of every module, hooks and dictionaries, which come first.

    Those are looked at elsewhere, or say nothing; each is an object of its own, to look at which takes longer than all
    else.
    """
    names = [*members]
    if names[: len(_MODULE)] == _MODULE:
        del names[: len(_MODULE)]
    return names if PASSING.isdisjoint(names) else [name for name in names if name not in PASSING]


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
