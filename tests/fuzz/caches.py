"""What a user does with the cache that a call has returned, before the next one goes on from it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch


def read(cache: Any) -> Any:
    """By iterating over it, and by its layers."""
    sum(float(keys.double().sum()) for keys, *_ in cache if keys is not None)
    [layer.values for layer in cache.layers if hasattr(layer, "values")]
    return cache


def edited(cache: Any) -> Any:
    """The keys of the last column are made smaller, in place."""
    for layer in cache.layers:
        if getattr(layer, "keys", None) is not None:
            layer.keys[:, :, -1:] *= 0.5
    return cache


def assigned(cache: Any) -> Any:
    """Values of a layer are replaced."""
    for layer in cache.layers[:1]:
        if getattr(layer, "values", None) is not None:
            layer.values = layer.values * 0.5
    return cache


def cropped(cache: Any) -> Any:
    """By two tokens, which the next call has to compute again."""
    cache.crop(-2)
    return cache


def saved(cache: Any) -> Any:
    """Written and read."""
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


USES: dict[str, Callable[[Any], Any]] = {
    "read": read,
    "edited": edited,
    "assigned": assigned,
    "cropped": cropped,
    "saved": saved,
}
