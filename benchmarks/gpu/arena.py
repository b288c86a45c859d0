"""Random numbers made once, from which the buffers of all cells are cut: gigabytes need not be drawn for each."""

from __future__ import annotations

import math

import torch

from .machine import device_of

_ALIGNMENT = 128  # elements between the starts of two buffers


class Arena:
    """`bytes_` of standard normal numbers on `device`.

    Buffers are views one after the other, so no two of them share memory, and none is read from the L2 cache because
    of another.
    """

    def __init__(self, bytes_: int, dtype: torch.dtype, device: torch.device) -> None:
        self._numbers = torch.empty(bytes_ // dtype.itemsize, dtype=dtype, device=device)
        for chunk in self._numbers.split(2**30):  # one call for more than 2**31 is slow or refused in places
            chunk.normal_()
        self._used = 0

    @classmethod
    def for_measuring(cls, dry_run: bool, dtype: torch.dtype, most: int = 60 * 10**9) -> Arena:
        """Three fifths of the device's free memory, at most `most` bytes; a few MB in a dry run."""
        device = device_of(dry_run)
        free = 2**22 if dry_run else torch.cuda.mem_get_info(device)[0]
        return cls(min(most, free * 3 // 5), dtype, device)

    @property
    def bytes(self) -> int:
        """Size of the whole."""
        return self._numbers.numel() * self._numbers.element_size()

    def fits(self, bytes_: int) -> bool:
        """Whether buffers of so many bytes can be cut from an unused arena."""
        return bytes_ + 2**16 <= self.bytes

    def reset(self) -> None:
        """Forget the buffers that were cut."""
        self._used = 0

    def cut(self, *shape: int) -> torch.Tensor:
        """The next buffer."""
        count = math.prod(shape)
        buffer = self._numbers[self._used : self._used + count].view(shape)
        self._used += math.ceil(count / _ALIGNMENT) * _ALIGNMENT
        return buffer
