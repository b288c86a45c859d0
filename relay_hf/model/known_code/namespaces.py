"""What functions take from the files around them when they run: other functions, objects, and PyTorch's functions.

A patch of `modeling_llama.apply_rotary_pos_emb`, of `torch.rsqrt` or of `Tensor.pow` changes a model, and no module nor
class of it shows that. What was found known is remembered, and compared by identity at the next look: 30 us.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor
from torch._C import TensorBase
from torch.nn import functional

from .callables import functions_in, is_data
from .imports import imported_packages, is_as_imported, is_imported
from .origins import code_of, described, file_of, is_in, is_known, is_known_function
from .pytorch import OPERATOR_METHODS, OWNERS, names_in, stood_at_import

# What these files use is looked at too.
_FOLLOWED = (("transformers", ""), ("accelerate", ""), ("peft", ""), ("trl", ""), ("torch", "/torch/nn/"))
_MOST = 16  # sets of functions that are remembered


class _Place(NamedTuple):
    """A name in a namespace (of a file, of PyTorch, of a class), and what stands there."""

    namespace: Mapping[str, Any]
    name: str
    value: Any
    code: CodeType | None  # of a function, which may be given other code in place

    @classmethod
    def of(cls, namespace: Mapping[str, Any], name: str) -> _Place:
        value = namespace.get(name)
        return cls(namespace, name, value, value.__code__ if isinstance(value, FunctionType) else None)


_found_known: dict[tuple[frozenset[CodeType], int], list[_Place]] = {}


def replaced(
    functions: Mapping[CodeType, FunctionType], files: Collection[str], owners: Sequence[Any] = OWNERS
) -> tuple[str, str] | None:
    """The first name that functions use and under which something unknown stands: the name, and the origin; or None.

    Args:
        functions: the functions, by their code.
        files: the model's own files, whose functions may use each other and all that they import.
        owners: what is PyTorch's and is looked at, beside these files.
    """
    key = (frozenset(functions), len(owners))
    places = _found_known.get(key)
    if places is not None and all(
        namespace.get(name) is value and (code is None or getattr(value, "__code__", None) is code)
        for namespace, name, value, code in places
    ):
        return None
    places = []
    for place, owner, unknown in _places(functions.values(), files, owners):
        if unknown is not None:
            return f"{owner}.{place.name}", described(unknown)
        kind = type(place.value)
        if kind in (FunctionType, ModuleType, type) or place.namespace.get("__file__") not in files:
            places.append(place)  # an object of a user's file, such as a model, would be kept alive
    _found_known[key] = places
    if len(_found_known) > _MOST:
        _found_known.pop(next(iter(_found_known)), None)
    return None


def _places(
    functions: Iterable[FunctionType], files: Collection[str], owners: Sequence[Any]
) -> Iterator[tuple[_Place, str, Any]]:
    """The places that functions take something from, and the functions there.

    Each comes with its owner's name, and what is unknown there or None.
    """
    todo, seen, names = [*functions], set(), set(OPERATOR_METHODS)
    while todo:
        function = todo.pop()
        if not _is_followed(function, files) or function.__code__ in seen:
            continue
        code, namespace = function.__code__, function.__globals__
        seen.add(code)
        used = names_in(code)
        for name in used & namespace.keys():
            value = namespace[name]
            owner = next((each for each in OWNERS if vars(each) is namespace), None)
            own = files if code.co_filename in files else ()
            unknown = _unknown_in(namespace, name, own) if owner is None else _unknown_in_pytorch(owner, name)
            yield _Place.of(namespace, name), namespace["__name__"], unknown
            if is_as_imported(namespace["__name__"], name, value):
                yield from _methods(value)
            todo += functions_in(value) if isinstance(value, FunctionType) else ()
        todo += filter(None, (vars(functional).get(name) for name in used - names))
        names |= used
    for owner in owners:
        for name in names:
            if name in vars(owner) or (owner is Tensor and hasattr(Tensor, name)):
                yield _Place.of(vars(owner), name), owner.__name__, _unknown_in_pytorch(owner, name)


def _methods(value: Any) -> Iterator[tuple[_Place, str, Any]]:
    """The methods of an object of Transformers' that a file imports, such as a registry, like `_places`."""
    for base in () if isinstance(value, FunctionType | ModuleType | type) else type(value).__mro__:
        for name, method in vars(base).items() if is_in(file_of(base.__module__) or "", "transformers") else ():
            if isinstance(method, FunctionType):
                yield _Place.of(vars(base), name), base.__name__, None if is_known_function(method) else method


def _is_followed(function: Any, files: Collection[str]) -> bool:
    if not isinstance(function, FunctionType):
        return False
    path = function.__code__.co_filename
    if path in files:  # a script's and a notebook's names may hold anything: whole models, which would be kept alive
        return code_of(function.__globals__["__name__"]) is not None
    return any(is_in(path, package) and folder in path for package, folder in _FOLLOWED)


def _unknown_in(namespace: Mapping[str, Any], name: str, files: Collection[str]) -> Any:
    """What is unknown in the place of what a file of code has defined or imported under this name, or None."""
    value, module_name = namespace[name], namespace["__name__"]
    if is_as_imported(module_name, name, value):
        return None
    unknown = _unknown(value, files)
    if unknown is None:
        as_it_may_be = isinstance(value, FunctionType | type) or is_data(value) or not is_imported(module_name, name)
        return None if as_it_may_be else value
    path = getattr(getattr(unknown, "__code__", None), "co_filename", "")
    return None if any(is_in(path, package) for package in imported_packages(module_name)) else unknown


def _unknown_in_pytorch(owner: Any, name: str) -> Any:
    """What is unknown in the place of what PyTorch has under this name, or None."""
    value = vars(owner).get(name)
    inherited = owner is Tensor and value is getattr(TensorBase, name, None)  # somebody has put it back
    if not (value is None or inherited or stood_at_import(owner, name, value)):
        return _unknown(value, ())
    replaced_before = isinstance(value, FunctionType) and not is_known_function(value)
    return value if replaced_before else None


def _unknown(value: Any, files: Collection[str]) -> Any:
    """What is unknown in a value: itself, if it is a class or a Python module, or a function that it runs; or None."""
    if isinstance(value, type | ModuleType):
        path = file_of(value.__module__) if isinstance(value, type) else getattr(value, "__file__", None)
        return None if path is not None and (is_known(path) or path in files) else value
    return next((each for each in functions_in(value) if not is_known_function(each, files)), None)
