"""Memory that tensors really hold."""

from __future__ import annotations

import gc
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


def storages_of(prefixes: Iterable[Any]) -> list[StorageWeakRef]:
    """Weak references to the memory that kept prefixes hold: keys, values, states."""
    tensors = [each for kept in prefixes for layer in kept.run.layers for each in layer.tensors()]
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]


def alive(storages: Iterable[StorageWeakRef]) -> int:
    """How many of them are still held by anything."""
    return sum(not storage.expired() for storage in storages)
