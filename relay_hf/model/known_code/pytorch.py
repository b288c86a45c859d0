"""PyTorch's own code: what of it has been replaced, or is put where it may look at several tokens."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, library, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .by_token import CHANGING, may_mix
from .callables import functions_in
from .origins import described, file_of, is_known

OPERATOR_METHODS = frozenset(
    f"__{side}{name[2:]}" for name in dir(operator) if name[:2] == "__" for side in ("", "r", "i")
)
OWNERS: tuple[Any, ...] = (torch, nn, functional, torch._C._nn, Tensor)
_AT_IMPORT: Mapping[int, Mapping[str, Any]] = {id(owner): dict(vars(owner)) for owner in OWNERS}

# Keys under which operators are looked up in a forward. PyTorch itself adds code under others, for vmap say.
_BACKENDS = ("Autocast", "Autograd", "CPU", "CUDA", "Composite", "HPU", "MPS", "PrivateUse", "XPU")
_IMPLEMENTATIONS = frozenset(library._impls)  # what torch.library was given


def stood_at_import(owner: Any, name: str, value: Any) -> bool:
    """Whether `owner`, one of `OWNERS`, has had this value under this name since this library was imported."""
    return _AT_IMPORT[id(owner)].get(name) is value


def replaced_operator() -> str | None:
    """An operator of PyTorch's that was given other code since this library was imported, or None."""
    for key in library._impls - _IMPLEMENTATIONS:
        namespace, *_, dispatched = key.split("/")
        if namespace == "aten" and dispatched.startswith(_BACKENDS):
            return f"torch.ops.{key}"
    return None


def unsafe_modules(modules: Sequence[nn.Module]) -> Mapping[nn.Module, str]:
    """PyTorch's modules that may look at several tokens, and that no class around them builds: each with its origin.

    So is spectral normalization in training mode: it changes in each forward.
    """
    kinds = {kind for kind in {*map(type, modules)} if may_mix(kind)}
    if not kinds:
        return {}
    parents = {child: parent for parent in modules for child in parent._modules.values() if child is not None}
    names: dict[type, set[str]] = {}
    found = {}
    for module in modules:
        if type(module) in kinds and not _is_built(module, parents, names):
            found[module] = f"{type(module).__module__}.{type(module).__qualname__}"
    return found


def _is_built(module: nn.Module, parents: Mapping[nn.Module, nn.Module], names: dict[type, set[str]]) -> bool:
    if type(module).__name__ == CHANGING:
        return not module.training
    around = parents.get(module)
    while around is not None:
        kind = type(around)
        if kind not in names:
            names[kind] = _names_in(kind)
        if type(module).__name__ in names[kind]:
            return True
        around = parents.get(around)
    return False


def mode_around() -> str | None:
    """The origin of a mode of a user's that changes what PyTorch's functions do, or None. `torch.device` is one too."""
    for mode in (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()):
        if not is_known(file_of(type(mode).__module__) or ""):
            return described(type(mode))
    return None


def _names_in(kind: type) -> set[str]:
    """The names that the code of a class uses: those of the classes that it builds are among them."""
    functions = (each for base in kind.__mro__ for value in vars(base).values() for each in functions_in(value))
    return {name for each in functions if isinstance(each, FunctionType) for name in names_in(each.__code__)}


def names_in(code: CodeType) -> set[str]:
    """The names that code, and the functions in it, take from elsewhere: global ones, and attributes."""
    return {*code.co_names}.union(*(names_in(each) for each in code.co_consts if isinstance(each, CodeType)))
