"""Small tables on the device, built from numbers on the host and found again by them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

_MAX_KEPT = 64

_Built = TypeVar("_Built")


class Kept(Generic[_Built]):
    """The last `_MAX_KEPT` things built, by key; one that a CUDA graph was captured with stays for good.

    The graph holds its address: were it freed, a replay would read whatever lies there then.
    """

    def __init__(self) -> None:
        self._built: OrderedDict[Hashable, _Built] = OrderedDict()
        self._captured: dict[Hashable, _Built] = {}

    def get(self, key: Hashable, build: Callable[[], _Built]) -> _Built:
        """What `key` stands for, built if it is not kept.

        Raises:
            RuntimeError: it would have to be built while a CUDA graph is captured.
        """
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        built = self._built.get(key, self._captured.get(key))
        if built is None:
            if capturing:
                raise RuntimeError(
                    "relay attention was captured into a CUDA graph before its work list was on the device; run the "
                    "same call once before the capture"
                )
            built = build()
        self._built[key] = built
        self._built.move_to_end(key)
        if len(self._built) > _MAX_KEPT:
            self._built.popitem(last=False)
        if capturing:
            self._captured[key] = built
        return built


def to_device(numbers: list, device: torch.device, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A tensor of `numbers` on the device."""
    host = torch.tensor(numbers, dtype=dtype)
    # From pinned memory the host does not wait for the copy.
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
