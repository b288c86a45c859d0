"""The memory that kept prefixes hold, counted by what their tensors are views of."""

from __future__ import annotations

from collections.abc import Collection

from relay_hf.prefix import KeptPrefix


def held_bytes(prefixes: Collection[KeptPrefix]) -> int:
    """Bytes of the memory that kept prefixes hold: of all that their tensors are views of, and of their ids."""
    held = [(each.embedded, *(t for layer in each.run.layers for t in layer.tensors())) for each in prefixes]
    storages = [tensor.untyped_storage() for tensors in held for tensor in tensors]
    tensors = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    return tensors + sum(len(each.data) for each in prefixes)
