"""The state that a forward reads from its modules beside parameters and buffers: settings, adapters, code, configs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..attention_choice import attention_configs, users_implementation
from ..modules import GENERAL_CLASSES, class_of, is_plain_linear, own_names
from ..upstream.attention import ATTENTION_FIELD
from .contents import SETTINGS, content

# Attributes of peft's tuner layers that decide what a forward adds; read from any module that has them.
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
# Methods of relay_hf itself on a module are not compared, because they do not change what it computes. One of them, the
# hook that replays graphs, is on the model only while a call runs.
_LIBRARY = f"{__name__.partition('.')[0]}."

_CODE = (FunctionType, property, staticmethod, classmethod)

PlaceInModel = tuple[int, str]


def attributes(modules: Sequence[nn.Module]) -> tuple[list[Any], dict[PlaceInModel, tuple[Hashable, list[Tensor]]]]:
    """Attributes of modules, in order.

    Returns:
        The settings (numbers, names, functions, dtypes, devices); and all other attributes, by the index of their
        module and their name: their `content`, and the tensors in them, which are neither parameters nor buffers.
    """
    settings: list[Any] = []
    others: dict[PlaceInModel, tuple[Hashable, list[Tensor]]] = {}
    looked_at = [(i, m.__dict__) for i, m in enumerate(modules) if not is_plain_linear(m)]
    # 1,400 modules have 5,000 such attributes. None is no setting, because a forward may replace it by another value
    # while the model stays the same.
    for index, own in looked_at:
        for name in own_names(own):
            value = own[name]
            if type(value) in SETTINGS:
                settings.append(value)
            elif value is not None:
                seen = _seen(name, value)
                if seen is not None:
                    others[index, name] = seen
    return settings, others


def _seen(name: str, value: Any) -> tuple[Hashable, list[Tensor]] | None:
    """The content of an attribute that is no setting, and the tensors in it; None if it need not be compared."""
    if isinstance(value, PreTrainedConfig):
        return None if name == "config" else (_fields(value), [])  # modules share it: compared once
    if type(value) is MethodType and str(getattr(value, "__module__", "")).startswith(_LIBRARY):
        return None
    tensors: list[Tensor] = []
    return content(value, tensors.append), tensors


def module_state(modules: Sequence[nn.Module]) -> list[Any]:
    """Modules, their classes with their code, adapters, and configurations."""
    kinds = [*map(class_of, modules)]
    state: list[Any] = [*map(id, modules), *kinds]
    classes = dict.fromkeys(base for kind in dict.fromkeys(kinds) for base in kind.__mro__)
    state += [f for each in classes if each not in GENERAL_CLASSES for f in vars(each).values() if type(f) in _CODE]
    state += adapter_state(modules)
    for config in attention_configs(modules):
        state += (_fields(config), users_implementation(config))
    return state


def make_up(modules: Sequence[nn.Module]) -> list[Hashable]:
    """What a model is, without the contents of its tensors: its modules and their code, settings, modes and dtypes.

    It stays equal while the model runs or learns. Attributes that hold tensors are left out, because a forward may
    replace them.
    """
    settings, others = attributes(modules)
    plain = [(place, what) for place, (what, tensors) in others.items() if not tensors]
    kinds = frozenset((p.dtype, p.device) for m in modules for p in m._parameters.values() if p is not None)
    return [*settings, *plain, *(module.training for module in modules), kinds, *module_state(modules)]


def _fields(config: PreTrainedConfig) -> str:
    return repr({name: value for name, value in vars(config).items() if name != ATTENTION_FIELD})


def adapter_state(modules: Sequence[nn.Module]) -> list[str]:
    """The attributes of peft's layers that decide what a forward adds; empty for a model without adapters."""
    tuned = (module.__dict__ for module in modules if "_active_adapter" in module.__dict__)
    return [repr(members.get(name)) for members in tuned for name in _ADAPTER_STATE]


def structure(modules: Sequence[nn.Module]) -> tuple[list[Hashable], list[Hashable]]:
    """The state that a CUDA graph of a forward can't follow when it changes.

    Returns:
        The addresses of weights, buffers and other tensors of modules, without their contents; and all else that a
        forward reads: plain settings of modules, their modes (training or not), adapters, and the configuration.
    """
    settings, others = attributes(modules)
    tensors = [t for module in modules for part in (module._parameters, module._buffers) for t in part.values()]
    places: list[Hashable] = [
        mark
        for t in (*tensors, *(t for _, inside in others.values() for t in inside))
        if t is not None
        for mark in (id(t), t.data_ptr(), t.dtype, t.shape, t.stride())
    ]
    held = [(place, what) for place, (what, _) in others.items()]
    modes = [module.training for module in modules]
    return places, [*settings, *held, *modes, *module_state(modules)]
