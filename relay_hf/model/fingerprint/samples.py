"""Reads a few elements of each of many tensors at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

_SAMPLES = 32
_DTYPE = attrgetter("dtype")
_TAKEN = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})  # `take` has no float8, for example


@torch.inference_mode()  # views take a sixth less time than under no_grad
def samples(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[list[bytes], list[bytes]]:
    """Evenly spread elements of each tensor, 32 or all, as bytes, so that a NaN equals itself. Waits once for a device.

    Returns:
        The samples of `parameters`, in few pieces; the samples of `others`, one by one.
    """
    pieces = [torch.cat(sampled) for sampled in _by_kind(parameters)]
    found = _on_host([*pieces, *(torch.cat(sampled) for each in others for sampled in _by_kind([each]))])
    return found[: len(pieces)], found[len(pieces) :]


def tensor_samples(tensors: Sequence[Tensor]) -> list[bytes]:
    """Evenly spread elements of each tensor, as bytes, one by one."""
    return samples([], tensors)[1]


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The samples of each tensor, `[n]`, grouped by device and dtype."""
    # On the host the samples are copied, because `cat` takes 1.2 us more for a view. On a GPU they are views, so that
    # `cat` is the only launch.
    sampled = [
        torch.take(t, _PLACES[n].indices) if t.is_cpu and t.dtype in _TAKEN else _view(t)
        for t, n in zip(tensors, map(Tensor.numel, tensors), strict=True)
    ]
    kinds = [*zip(map(Tensor.get_device, tensors), map(_DTYPE, tensors), strict=True)]
    different = dict.fromkeys(kinds)
    if len(different) == 1:
        return [sampled]
    return [[s for s, k in zip(sampled, kinds, strict=True) if k == kind] for kind in different]


def _on_host(parts: Sequence[Tensor]) -> list[bytes]:
    # Numpy copies and Python compares, because torch would start its threads to copy or compare a tensor of 32,768
    # bytes. That takes 8 ms where other work holds a core.
    found = [b""] * len(parts)
    for device in dict.fromkeys(part.device for part in parts):
        here = [index for index, part in enumerate(parts) if part.device == device]
        data = [parts[index].view(torch.uint8) for index in here]
        if device.type != "cpu":  # this waits for the device once
            data = [*torch.cat(data).cpu().split([each.numel() for each in data])]
        for index, each in zip(here, data, strict=True):
            found[index] = each.numpy().tobytes()
    return found


def _view(tensor: Tensor) -> Tensor:
    """A tensor's samples, `[n]`."""
    places = _PLACES[tensor.numel()]
    if tensor.is_contiguous():
        return tensor.as_strided((places.number,), (places.step,))  # one call where view(-1)[::step] takes three
    return tensor.reshape(-1)[:: places.step][: places.number]


class _Places(NamedTuple):
    """Places of samples in a tensor: how many, the elements from one to the next, and each place, `[n]` on the host."""

    number: int
    step: int
    indices: Tensor


class _PlacesBySize(dict[int, _Places]):
    """Places by a tensor's number of elements. They are kept, because models have many tensors of few sizes."""

    def __missing__(self, count: int) -> _Places:
        number, step = min(_SAMPLES, count), max(1, (count - 1) // (_SAMPLES - 1))
        # A step without a common divisor with the size, if one is at most a sixteenth smaller, keeps the samples from
        # lying in few columns: the first column of Mamba's A_log is zero in every row, however it is scaled.
        step = next((s for s in range(step, step - step // 16 - 1, -1) if math.gcd(s, count) == 1), step)
        self[count] = places = _Places(number, step, step * torch.arange(number, device="cpu"))
        return places


_PLACES = _PlacesBySize()
