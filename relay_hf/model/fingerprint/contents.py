"""The contents of a module's attributes, in a form that can be compared: containers, methods, arrays, objects."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str)
# Types whose values never change, so that a fingerprint may hold them as they are.
SETTINGS = frozenset({*PLAIN, FunctionType, BuiltinFunctionType, partial, torch.dtype, torch.device})
_SEQUENCES = (list, tuple, deque)
_DEEPEST = 4  # containers in containers
_MOST = 1000  # entries of a container that is compared: a vocabulary in a module would take 30 ms in each call


def content(value: Any, found: Callable[[Tensor], None], deepest: int = _DEEPEST) -> Hashable:
    """A hashable object that stays equal as long as `value` holds the same. It refers to functions and settings only.

    Args:
        value: the value of an attribute.
        found: is called with each tensor in it whose elements can be read.
        deepest: how many levels of containers to go down.
    """
    kind = type(value)
    if kind in SETTINGS:
        return value
    if isinstance(value, Tensor):
        # A sparse tensor, or one on no device, has no elements to sample. Tensors of another class, and quantized ones,
        # may lack the operators that take samples.
        plain = kind in (Tensor, nn.Parameter) and not value.is_quantized
        if plain and value.layout is torch.strided and not value.is_meta:
            found(value)
        return id(value)
    if isinstance(value, nn.Module):  # compared as a module of the model
        return id(value)
    if kind is MethodType:
        return value.__func__, id(value.__self__)
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, value.shape, value.tobytes()
    if deepest and kind in _SEQUENCES and len(value) <= _MOST:
        return tuple(content(each, found, deepest - 1) for each in value)
    if deepest and isinstance(value, set | frozenset) and len(value) <= _MOST:
        return frozenset(each if type(each) in SETTINGS else id(each) for each in value)
    named = kind is SimpleNamespace or (is_dataclass(kind) and hasattr(value, "__dict__"))
    fields = vars(value) if named else value
    if deepest and isinstance(fields, dict) and len(fields) <= _MOST:
        return tuple((content(name, found, 0), content(each, found, deepest - 1)) for name, each in fields.items())
    try:
        return _Same(value)
    except TypeError:
        return id(value)


class _Same:
    """An object that equals only itself. A weak reference holds it, because another may later have its address."""

    def __init__(self, value: Any) -> None:
        self._address, self._value = id(value), weakref.ref(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value() is not None and self._value() is other._value()

    def __hash__(self) -> int:
        return self._address
