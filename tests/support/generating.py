"""Calls of generate() as most tests make them, and the cache in what they return."""

from __future__ import annotations

from typing import Any

import torch

from relay_hf.model.upstream.names import CACHE
from tests.support.counts import count_tried

__all__ = ["CACHE", "cache_of", "embedded", "generate"]


def generate(model: Any, inputs: dict, **options: Any) -> torch.Tensor:
    """Twelve greedy tokens: `[B, L + 12]`."""
    count_tried("calls of generate()")
    return model.generate(**inputs, **{"max_new_tokens": 12, "min_new_tokens": 12, **options})


def cache_of(outputs: Any) -> Any:
    """The cache in a model's outputs, by the name that this Transformers has for it."""
    return getattr(outputs, CACHE)


def embedded(model: Any) -> list[int]:
    """The number of tokens in each forward of the model that is still to come."""
    counts: list[int] = []
    embedding = model.get_input_embeddings()
    kind: Any = type(embedding)

    class Counting(kind):  # type: ignore[misc]
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            counts.append(ids.numel())
            return kind.forward(self, ids)

    embedding.__class__ = Counting
    return counts
