"""The modules of a model, and what an instance has beyond what every module has."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .upstream.models import INITIALIZED_MARK, PASSING_ATTRIBUTES

# Classes whose own methods take no part in a forward.
GENERAL_CLASSES = frozenset({object, nn.Module, *PreTrainedModel.__mro__})
# Classes that this library gives a module for the time of a forward, each with the one that it stands for. Other
# threads may look at the module meanwhile.
STAND_INS: dict[type[nn.Module], type[nn.Module]] = {}
_MODULE, _LINEAR = [*vars(nn.Module())], {*vars(nn.Linear(1, 1, device="meta"))}


def all_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, each once, level by level: a quarter of the time of `model.modules()`."""
    found = level = dict.fromkeys([model])
    while level:
        below = (child for module in level for child in module._modules.values())
        level = dict.fromkeys(child for child in below if child is not None and child not in found)
        found = found | level
    return [*found]


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module, also where one of this library's stands in for it."""
    kind = type(module)
    return STAND_INS.get(kind, kind)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is a Linear with no more attributes than nn.Linear sets. Its forward reads none of these."""
    if class_of(module) is not nn.Linear:
        return False
    members = module.__dict__.keys()
    return members == _LINEAR or members - {INITIALIZED_MARK} == _LINEAR


def own_names(members: dict[str, Any]) -> list[str]:
    """Names of a module's attributes, without those that every module has (hooks and dictionaries), which come first.

    These are compared elsewhere, or change nothing. To compare them here would take longer than all the rest.
    """
    names = [*members]
    if names[: len(_MODULE)] == _MODULE:
        del names[: len(_MODULE)]
    return names if PASSING_ATTRIBUTES.isdisjoint(names) else [name for name in names if name not in PASSING_ATTRIBUTES]
