"""A few elements of each of many tensors, in one look."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_SAMPLES = 32


@torch.inference_mode()  # in which a view takes a sixth less than under no_grad
def samples(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[list[bytes], list[bytes]]:
    """Evenly spread elements of each tensor, 32 or all, as bytes: a NaN equals itself. A device is waited for once.

    Returns:
        Those of `parameters`, in few pieces; those of `others`, one by one.
    """
    groups: defaultdict[torch.device, defaultdict[torch.dtype, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for view in map(_view, parameters):
        groups[view.device][view.dtype].append(view)
    last: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)  # of the others, in each group
    for index, view in enumerate(map(_view, others)):
        groups[view.device][view.dtype].append(view)
        last[view.device, view.dtype].append(index)
    together, apart = [], [b""] * len(others)
    for device, kinds in groups.items():
        parts = [torch.cat(views).view(torch.uint8) for views in kinds.values()]
        data, end = _on_host(parts, device), 0
        for (dtype, views), part in zip(kinds.items(), parts, strict=True):
            start, end = end, end + part.nbytes
            stop, indices = end, last[device, dtype]
            for index, view in zip(reversed(indices), reversed(views), strict=False):
                apart[index], stop = data[stop - view.nbytes : stop], stop - view.nbytes
            together.append(data[start:stop])
    return together, apart


def _on_host(parts: list[Tensor], device: torch.device) -> bytes:
    # Compared by Python: a comparison by torch would start its threads, which takes milliseconds on a busy machine.
    if device.type != "cpu":
        parts = [torch.cat(parts).cpu()]
    return b"".join(part.numpy().tobytes() for part in parts)


def _view(tensor: Tensor) -> Tensor:
    """A tensor's samples, `[n]`."""
    size, stride = _grid(tensor.shape)
    if tensor.is_contiguous():
        return tensor.as_strided(size, stride)  # one call where view(-1)[::step] takes three: 0.9 us a parameter
    return tensor.reshape(-1)[:: stride[0]][: size[0]]


@lru_cache(maxsize=4096)
def _grid(shape: torch.Size) -> tuple[tuple[int], tuple[int]]:
    """How many samples a tensor has, and the elements from one to the next. Models have many tensors of few shapes."""
    count = math.prod(shape)
    return (min(_SAMPLES, count),), (_step(count, shape[-1] if len(shape) > 1 else 1),)


def _step(count: int, columns: int) -> int:
    """Elements from one sample to the next, of `count` in rows of `columns`.

    If that can be had by a sixteenth less, not all samples lie in a few columns: the first column of Mamba's A_log is
    zero in every row, however it is scaled.
    """
    step = max(1, (count - 1) // (_SAMPLES - 1))
    return next((s for s in range(step, step - step // 16 - 1, -1) if math.gcd(s, columns) == 1), step)
