"""Memory that tensors really hold."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef


def live_bytes() -> int:
    """Bytes of the storages of all tensors that the garbage collector sees."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def objects() -> int:
    """Objects that the garbage collector sees, after a collection."""
    gc.collect()
    return len(gc.get_objects())


class Held:
    """What kept prefixes hold (keys, values, states): weak references to the tensors, and to their memory."""

    def __init__(self, prefixes: Iterable[Any]) -> None:
        tensors = _tensors(prefixes)
        self._tensors = [weakref.ref(tensor) for tensor in tensors]
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]

    def __len__(self) -> int:
        return len(self._tensors)

    def alive(self) -> int:
        """For how many of the tensors anything still holds their memory."""
        return sum(not storage.expired() for storage in self._storages)

    def seen(self) -> int:
        """How many of the tensors anything still refers to."""
        return sum(tensor() is not None for tensor in self._tensors)


def _tensors(prefixes: Iterable[Any]) -> list[torch.Tensor]:
    return [tensor for kept in prefixes for layer in kept.run.layers for tensor in layer.tensors()]
