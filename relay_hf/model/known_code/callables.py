"""Follows a callable through wrappers, closures, partials and bound objects to all functions that it may run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial, partialmethod
from logging import Logger
from types import FunctionType, GenericAlias, MethodType, NoneType, UnionType
from typing import Any, TypeVar
from weakref import ReferenceType

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from ..compiling import ORIGINAL
from ..upstream.names import CALLERS_OF_FORWARDS, INITIALIZE
from .by_token import may_mix
from .origins import is_in

_BACKEND = "_torchdynamo_orig_backend"  # what torch.compile's functions around a backend keep the next one under
# Special methods that no forward runs.
_AROUND_OBJECTS = frozenset(
    f"__{name}__"
    for name in (
        *("class_getitem", "copy", "deepcopy", "del", "dir", "doc", "format", "getstate", "init", "init_subclass"),
        *("new", "post_init", "reduce", "reduce_ex", "repr", "setstate", "sizeof", "str", "subclasshook"),
    )
)
# generate(), train(), extra_repr() and the like are run by no forward. Tracers and quantizers replace them.
_AROUND_FORWARDS = {name for base in GenerationMixin.__mro__ for name in vars(base)} - CALLERS_OF_FORWARDS
_AROUND_FORWARDS |= {name for name in vars(nn.Module) if name[0] != "_"} - {"forward"}
_AROUND_FORWARDS |= {name for name, value in vars(PreTrainedModel).items() if isinstance(value, classmethod)}
_AROUND_FORWARDS |= {"_load_from_state_dict", "_save_to_state_dict", "reset_parameters", INITIALIZE}
_MOST = 100  # entries of a container that code holds: more are data
_CONTAINERS = (list, tuple, set, frozenset, dict)
# Values of these classes run nothing.
_DATA = frozenset(
    {bool, bytes, complex, float, int, str, type, GenericAlias, NoneType, ReferenceType, TypeVar, UnionType}
    | {nn.Parameter, torch.Tensor, torch.device, torch.dtype, torch.layout, torch.memory_format, torch.Size}
)
_OPS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)  # torch.ops, with code in any language
_OF_ALL = frozenset({object, nn.Module, torch.Tensor, *torch.Tensor.__mro__})


def functions_in(value: Any, known: Collection[int] = ()) -> Iterator[Any]:
    """All functions that run when a value is used, as far as it holds them itself, and callables without Python's code.

    `known`: ids of objects, and of objects' classes, to pass by.
    """
    seen: set[int] = set()
    for each in _entries(value) if type(value) in _CONTAINERS else (value,):
        yield from _functions(each, seen, known)


def is_data(value: Any) -> bool:
    """Whether a value runs nothing, or nothing that changes a forward."""
    return type(value) in _DATA or isinstance(value, PreTrainedConfig | Logger | type)


def may_run(name: str) -> bool:
    """Whether a forward may run what a class, or an instance, has by this name."""
    return name not in _AROUND_OBJECTS and name not in _AROUND_FORWARDS


def methods(kind: type) -> list[Any]:
    """What stands in a class's body and a forward may run, in whatever kind of wrapper."""
    return [value for name, value in vars(kind).items() if may_run(name) and not is_data(value)]


def _functions(value: Any, seen: set[int], known: Collection[int]) -> Iterator[Any]:
    if is_data(value) or id(value) in seen or id(value) in known:
        return
    seen.add(id(value))
    if type(value) in _CONTAINERS:
        yield from _held(_entries(value), seen, known)
    elif isinstance(value, FunctionType):
        yield value
        original = getattr(value, ORIGINAL, None)  # all else that torch.compile's wrapper holds is the compiler's
        if original is not None and is_in(value.__code__.co_filename, "torch"):
            yield from _held((original, _backend_of(value)), seen, known)
        else:
            yield from _held([cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)], seen, known)
    elif isinstance(value, MethodType):
        owner = value.__self__  # a class, of torch.autograd.Function.apply
        yield from _held((value.__func__, *(_of_class(owner) if isinstance(owner, type) else (owner,))), seen, known)
    elif isinstance(value, partial | partialmethod):
        yield from _held((value.func, *value.args, *value.keywords.values()), seen, known)
    elif isinstance(value, property):
        yield from _held((value.fget,), seen, known)
    elif isinstance(value, nn.Module):
        if may_mix(type(value)):  # one of the model's own modules comes here only if no class builds it
            yield value
        hooks = (*value._forward_pre_hooks.values(), *value._forward_hooks.values())
        own = [each for name, each in vars(value).items() if name == "forward" or name[:1] != "_"]
        yield from _held((*_of_class(type(value)), *own, *hooks, *value._modules.values()), seen, known)
    elif hasattr(value, "__wrapped__") and not isinstance(vars(type(value)).get("__call__"), FunctionType):
        yield from _functions(value.__wrapped__, seen, known)  # static methods, functools.lru_cache
    else:
        kind = type(value)
        if isinstance(value, _OPS) or (callable(value) and not isinstance(kind.__call__, FunctionType)):
            yield value
        of_kind = () if id(kind) in known else _of_class(kind)
        held = _held((*of_kind, *getattr(value, "__dict__", {}).values()), seen, known)
        yield from (each for each in held if isinstance(each, FunctionType))


def _held(values: Any, seen: set[int], known: Collection[int]) -> Iterator[Any]:
    """What values run that other code holds: callables, and containers of a few of them."""
    for value in values:
        if type(value) in _CONTAINERS or callable(value) or hasattr(type(value), "__get__"):
            yield from _functions(value, seen, known)


def _entries(container: Any) -> Any:
    if len(container) > _MOST:
        return ()
    return container.values() if isinstance(container, dict) else container


def _of_class(kind: type) -> list[Any]:
    """The methods of a class, with those that it inherits, but for what every module and tensor has."""
    bases = (base for base in kind.__mro__ if base not in _OF_ALL and base.__module__ != "builtins")
    return [method for base in bases for method in methods(base)]


def _backend_of(compiled: FunctionType) -> Any:
    """The backend that a user gave torch.compile, or PyTorch's own."""
    cells = dict(zip(compiled.__code__.co_freevars, compiled.__closure__ or (), strict=True))
    backend = cells["callback"].cell_contents if "callback" in cells else None
    while hasattr(backend, _BACKEND):
        backend = getattr(backend, _BACKEND)
    return backend


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
