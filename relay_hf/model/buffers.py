"""Buffers that a model computes and does not save: RoPE's frequencies, masks, a random projection made from a seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .fingerprint.module_state import PlaceInModel

_SAMPLES = 64  # enough for all of RoPE's frequencies
# Devices compute powers and cosines to within a few units of float32's last place, 6e-8; rounded to bfloat16, a number
# is off by up to 4e-3.
_TOLERANCE = 1e-5

Described = dict[str, list[Any]]


def computed_buffers(model: nn.Module, ignore: frozenset[PlaceInModel]) -> Described:
    """Dtype, shape and evenly spread elements of each such buffer, by name.

    `ignore`: buffers whose elements are not described (None), by number of the module and name.
    """
    found: Described = {}
    for index, (path, module) in enumerate(model.named_modules()):
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(name)
            if buffer is not None:
                elements = None if (index, name) in ignore else _elements(buffer)
                found[f"{path}.{name}".lstrip(".")] = [str(buffer.dtype), list(buffer.shape), elements]
    return found


def alike(there: Any, here: Any) -> bool:
    """Whether buffers equal a description, up to the differences between devices."""
    if not isinstance(there, dict) or there.keys() != here.keys():
        return False
    return all(_same(there[name], here[name]) for name in here)


def _same(there: Any, here: list[Any]) -> bool:
    if not isinstance(there, list) or there[:2] != here[:2] or len(there) != len(here):
        return False
    if there[2] is None:
        return True
    numbers = isinstance(there[2], list) and len(there[2]) == len(here[2])
    return numbers and all(_close(a, b) for a, b in zip(there[2], here[2], strict=True))


def _close(there: Any, here: Any) -> bool:
    if isinstance(there, float) and isinstance(here, float):
        return math.isclose(there, here, rel_tol=_TOLERANCE) or (math.isnan(there) and math.isnan(here))
    return bool(there == here)


def _elements(buffer: Tensor) -> list[Any]:
    flat = buffer.detach().reshape(-1)
    values = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].cpu()
    return values.tolist() if not values.is_complex() else values.view(values.real.dtype).tolist()
