"""What several test files need."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from tally import tally
from torch import nn

from relay_hf.model.upstream.names import CACHE
from relay_hf.prefix import KeptPrefix


def generate(model: Any, inputs: dict, **options: Any) -> torch.Tensor:
    """Twelve greedy tokens: `[B, L + 12]`."""
    tally("calls of generate()")
    return model.generate(**inputs, **{"max_new_tokens": 12, "min_new_tokens": 12, **options})


def held_bytes(prefixes: Collection[KeptPrefix]) -> int:
    """Bytes of the memory that kept prefixes hold: of all that their tensors are views of, and of their ids."""
    held = [(each.embedded, *(t for layer in each.run.layers for t in layer.tensors())) for each in prefixes]
    storages = [tensor.untyped_storage() for tensors in held for tensor in tensors]
    tensors = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    return tensors + sum(len(each.data) for each in prefixes)


def members(model: nn.Module) -> dict[str, Any]:
    """What every module holds in its `__dict__`, by path: enough where the model generates in between, and quick.

    What has been generated leaves its marks deeper down, in the handle and its counts; `anatomy.py` sees these too.
    """
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                found[path, name] = {key: id(part) for key, part in value.items()}
            else:
                found[path, name] = dict(value) if isinstance(value, dict) else value
    return found


def cache_of(outputs: Any) -> Any:
    """The cache in a model's outputs, by the name that this Transformers has for it."""
    return getattr(outputs, CACHE)
