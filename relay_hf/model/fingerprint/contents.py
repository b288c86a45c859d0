"""What a module holds in attributes that are no plain settings: containers, methods, arrays, tensors, objects."""

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
# What is itself what it says, and may be held.
SETTINGS = frozenset({*PLAIN, FunctionType, BuiltinFunctionType, partial, torch.dtype, torch.device})
_SEQUENCES = (list, tuple, deque)
_DEEPEST = 4  # containers in containers
_MOST = 1000  # entries of a container that are looked at: a vocabulary held in a module would take 30 ms in each call


def content(value: Any, found: Callable[[Tensor], None], deepest: int = _DEEPEST) -> Hashable:
    """What equals itself as long as `value` holds the same; hashable. It keeps alive functions and plain values alone.

    Args:
        value: anything that an attribute holds.
        found: is told of each tensor in it that has elements to look at.
        deepest: how many containers deep to look.
    """
    kind = type(value)
    if kind in SETTINGS:
        return value
    if isinstance(value, Tensor):
        # A sparse one, or one on no device, has none; those of a class of its own, and quantized ones, may have other
        # operators than are used to look at them.
        plain = kind in (Tensor, nn.Parameter) and not value.is_quantized
        if plain and value.layout is torch.strided and not value.is_meta:
            found(value)
        return id(value)
    if isinstance(value, nn.Module):  # looked at as one of the model's
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
    """An object, equal to itself alone. It is not kept alive, and of one that is gone the address may be another's."""

    def __init__(self, value: Any) -> None:
        self._address, self._value = id(value), weakref.ref(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value() is not None and self._value() is other._value()

    def __hash__(self) -> int:
        return self._address
