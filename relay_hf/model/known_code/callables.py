"""Follows a callable through wrappers, closures, partials and bound objects to all code that it may run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial, partialmethod
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, MethodWrapperType
from typing import Any

from torch import nn
from transformers import GenerationMixin

from .origins import is_in

_NO_CODE = (BuiltinFunctionType, MethodWrapperType, type)
# torch.compile keeps under this name what it was given. All else that its wrapper holds is the compiler's.
_COMPILED = "_torchdynamo_orig_callable"
_METHODS = ("__call__", "__getattr__", "__getattribute__")  # those that a forward may run, of methods with such names
_DESCRIPTORS = (property, staticmethod, classmethod, partialmethod)
# generate(), train(), extra_repr() and the like are run by no forward. Tracers and quantizers replace them.
_AROUND_FORWARDS = {name for base in GenerationMixin.__mro__ for name in vars(base)}
_AROUND_FORWARDS |= {name for name in vars(nn.Module) if name[0] != "_"} - {"forward"}
_MOST = 100  # entries of a container that a closure holds: more are data


def code_in(value: Any) -> Iterator[CodeType]:
    """All code that a callable may run, as far as it holds it itself."""
    yield from _code(value, set())


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


def _code(value: Any, seen: set[int]) -> Iterator[CodeType]:
    if isinstance(value, _NO_CODE) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, FunctionType):
        yield value.__code__
        original = getattr(value, _COMPILED, None)
        if original is not None and is_in(value.__code__.co_filename, "torch"):
            yield from _code(original, seen)
        else:
            yield from _held([cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)], seen)
    elif isinstance(value, MethodType):
        yield from _held((value.__func__, value.__self__), seen)
    elif isinstance(value, partial | partialmethod):
        yield from _held((value.func, *value.args, *value.keywords.values()), seen)
    elif isinstance(value, property):
        yield from _held((value.fget,), seen)
    elif isinstance(value, nn.Module):
        yield from _held((*_of_class(type(value)), vars(value).get("forward")), seen)
    elif hasattr(value, "__wrapped__") and not isinstance(vars(type(value)).get("__call__"), FunctionType):
        yield from _code(value.__wrapped__, seen)  # static methods, functools.lru_cache
    else:
        yield from _held((*_of_class(type(value)), *getattr(value, "__dict__", {}).values()), seen)


def _held(values: Any, seen: set[int]) -> Iterator[CodeType]:
    """The code in values that other code holds: in callables, and in containers of a few of them."""
    for value in values:
        if isinstance(value, list | tuple | set | frozenset | dict):
            if len(value) <= _MOST and id(value) not in seen:
                seen.add(id(value))
                yield from _held(value.values() if isinstance(value, dict) else value, seen)
        elif callable(value) or isinstance(value, _DESCRIPTORS):
            yield from _code(value, seen)


def _of_class(kind: type) -> list[Any]:
    """The methods of a class, with those that it inherits, but for what every module has."""
    return [method for base in kind.__mro__ if base not in (object, nn.Module) for method in methods(base)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
