"""A cache of small tables on a device: they are built from numbers on the host, and found again by these numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

_Table = TypeVar("_Table")


class DeviceTableCache(Generic[_Table]):
    """The tables that were built last, by key. A table that a CUDA graph was captured with is never freed.

    The graph holds the table's address. If the table were freed, a replay would read other data there.

    Args:
        most: how many tables are kept, without those for graphs.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._built: dict[Hashable, _Table] = {}
        self._captured: dict[Hashable, _Table] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, device: torch.device, build: Callable[[], _Table]) -> _Table:
        """The table of `key` on `device`, built if it is not kept.

        Raises:
            RuntimeError: it would have to be built while a CUDA graph is captured.
        """
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        key = (key, device)
        with self._lock:
            built = self._built.get(key, self._captured.get(key))
            if built is None:
                if capturing:
                    raise RuntimeError(
                        "relay attention was captured into a CUDA graph before its work list was on the device; run "
                        "the same call once before the capture"
                    )
                if len(self._built) >= self._most:
                    self._drop(device)
                built = self._built[key] = build()
            if capturing:
                self._captured[key] = built
        return built

    def _drop(self, device: torch.device) -> None:
        """Drop the older half, once no kernel of any stream reads it any more."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        for key in list(self._built)[: (self._most + 1) // 2]:
            del self._built[key]


def to_device(numbers: list, device: torch.device, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A tensor of `numbers` on the device. The copy is complete when this returns, for every stream."""
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(device)
