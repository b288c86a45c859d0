"""Follows a callable through wrappers, closures, partials and bound objects to all code that it may run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial, partialmethod
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, MethodWrapperType
from typing import Any

from torch import nn
from transformers import GenerationMixin

from ..upstream.names import INPUTS_OF_FORWARDS
from .origins import is_in

_NO_CODE = (BuiltinFunctionType, MethodWrapperType, type)
# torch.compile keeps under this name what it was given. All else that its wrapper holds is the compiler's.
_COMPILED = "_torchdynamo_orig_callable"
_METHODS = ("__call__", "__getattr__", "__getattribute__")  # those that a forward may run, of methods with such names
_DESCRIPTORS = (property, staticmethod, classmethod, partialmethod)
# generate(), train(), extra_repr() and the like are run by no forward. Tracers and quantizers replace them.
_AROUND_FORWARDS = {name for base in GenerationMixin.__mro__ for name in vars(base)} - INPUTS_OF_FORWARDS
_AROUND_FORWARDS |= {name for name in vars(nn.Module) if name[0] != "_"} - {"forward"}
_MOST = 100  # entries of a container that a closure holds: more are data


def code_in(value: Any, known: Collection[int] = ()) -> Iterator[CodeType]:
    """All code that a callable may run, as far as it holds it itself. `known`: ids of objects to pass by."""
    yield from _code(value, set(), known)


def may_run(name: str) -> bool:
    """Whether a forward may run what a class, or an instance, has by this name."""
    return name in _METHODS or (name[:2] != "__" and name not in _AROUND_FORWARDS)


def methods(kind: type) -> list[Any]:
    """The functions in a class's body that a forward may run, in whatever kind of wrapper."""
    return [
        value
        for name, value in vars(kind).items()
        if may_run(name) and (callable(value) or isinstance(value, _DESCRIPTORS))
    ]


def _code(value: Any, seen: set[int], known: Collection[int]) -> Iterator[CodeType]:
    if isinstance(value, _NO_CODE) or id(value) in seen or id(value) in known:
        return
    seen.add(id(value))
    if isinstance(value, FunctionType):
        yield value.__code__
        original = getattr(value, _COMPILED, None)
        if original is not None and is_in(value.__code__.co_filename, "torch"):
            yield from _code(original, seen, known)
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
        hooks = (*value._forward_pre_hooks.values(), *value._forward_hooks.values())
        own = [each for name, each in vars(value).items() if name == "forward" or name[:1] != "_"]
        yield from _held((*_of_class(type(value)), *own, *hooks, *value._modules.values()), seen, known)
    elif hasattr(value, "__wrapped__") and not isinstance(vars(type(value)).get("__call__"), FunctionType):
        yield from _code(value.__wrapped__, seen, known)  # static methods, functools.lru_cache
    else:
        yield from _held((*_of_class(type(value)), *getattr(value, "__dict__", {}).values()), seen, known)


def _held(values: Any, seen: set[int], known: Collection[int]) -> Iterator[CodeType]:
    """The code in values that other code holds: in callables, and in containers of a few of them."""
    for value in values:
        if isinstance(value, list | tuple | set | frozenset | dict):
            if len(value) <= _MOST and id(value) not in seen:
                seen.add(id(value))
                yield from _held(value.values() if isinstance(value, dict) else value, seen, known)
        elif callable(value) or isinstance(value, _DESCRIPTORS):
            yield from _code(value, seen, known)


def _of_class(kind: type) -> list[Any]:
    """The methods of a class, with those that it inherits, but for what every module has."""
    return [method for base in kind.__mro__ if base not in (object, nn.Module) for method in methods(base)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
