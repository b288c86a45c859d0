"""Attention functions that stand in Transformers' registries: whether they are its own, or hand over to its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, NamedTuple

from torch import nn

from .callables import functions_in
from .namespaces import replaced
from .origins import described, file_of, is_in, is_known_function


class _Wrapper(NamedTuple):
    """A wrapper that a package puts around every registered attention function when it is imported.

    Attributes:
        package, file, name: where its code is.
        inside: the name that its closure has for the wrapped function.
        idle: whether it hands over to the wrapped function, and does no more.
    """

    package: str
    file: str
    name: str
    inside: str
    idle: Callable[[Iterable[nn.Module]], bool]


_WRAPPERS = (
    # It masks keys that a press has marked on the module, behind a prefill.
    _Wrapper(
        "kvpress",
        "attention_patch.py",
        "attention_patch.<locals>.wrapper",
        "func",
        lambda modules: all(module.__dict__.get("masked_key_indices") is None for module in modules),
    ),
)


def unknown_attention(function: Any, modules: Iterable[nn.Module], home: str = "") -> str | None:
    """The origin of an attention function that is neither Transformers' own nor hands over to one, or None.

    `home`: the Python module of a model that may have attention of its own.
    """
    while (wrapper := _wrapper_of(function)) is not None and wrapper.idle(modules):
        cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
        function = cells[wrapper.inside].cell_contents
    files = {file_of(home) or ""}
    functions = {}
    for each in functions_in(function):
        if not is_known_function(each, files):
            return described(each)
        if isinstance(each, FunctionType):
            functions[each.__code__] = each
    found = replaced(functions, files, owners=())  # PyTorch's functions are looked at with all of the model's code
    return None if found is None else f"one that uses {found[1]} as {found[0]}"


def _wrapper_of(function: Any) -> _Wrapper | None:
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    found = (each for each in _WRAPPERS if is_in(code.co_filename, each.package, each.file))
    return next((each for each in found if each.name == code.co_qualname), None)
