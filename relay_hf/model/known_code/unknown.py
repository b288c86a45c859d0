"""Finds code in a model that is not known: in its modules' classes, in what instances have in place of a method or
beside, and in what stands under the names that this code uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import nn

from ..modules import GENERAL_CLASSES
from .callables import functions_in
from .known import KnownCode
from .namespaces import replaced
from .origins import described, is_known_function, own_files

# Methods of every module.
_RUN_BY_ALL = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__")

Trust = Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Unknown:
    """Code that is not known to act token by token.

    Attributes:
        module: the module that runs it; None if it stands in a file or in PyTorch, where many modules may call it.
        what: what it is in the place of, in words.
        origin: its name, and where it is from.
    """

    module: nn.Module | None
    what: str
    origin: str


def unknown_code(model: nn.Module, modules: Sequence[nn.Module], trusted: Trust) -> Unknown | None:
    """The first code of a model that is not known, or None.

    `trusted`: whether the user vouches for a module; for the model itself it means all functions that its files call.
    """
    files = own_files(type(model))
    known = KnownCode(files, modules)
    for module, what, origin in chain(known.unknown_kinds(), known.unknown_attributes(model)):
        if not trusted(module):
            return Unknown(module, what, origin)
    if trusted(model):
        return None
    found = _replaced_in_all() or replaced(known.functions, files)
    return None if found is None else Unknown(None, *found)


def unknown_class(kind: type) -> str | None:
    """The origin of what is unknown in a class of a known package, or None."""
    return KnownCode(frozenset(), ()).unknown_in_class(kind)


def _replaced_in_all() -> tuple[str, str] | None:
    """The first method that all modules have, or all models, and that was replaced: its name, and the origin."""
    for kind in GENERAL_CLASSES:
        for name in _RUN_BY_ALL:
            value = vars(kind).get(name)
            for each in () if value is None else functions_in(value):
                if not is_known_function(each):
                    return f"{kind.__name__}.{name}", described(each)
    return None
