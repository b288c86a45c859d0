"""Weights in the order in which oneDNN reads them fastest: copies beside the plain ones, which they are compared with.

One copy serves every number of rows. In float32, a plain weight of 32,000 x 768 takes 10.8 ms for 2 rows by MKL and
4.8 ms by oneDNN, and its copy 2.4 ms (one core); for 256 rows all of oneDNN's take the same.
"""

from __future__ import annotations

import threading
from typing import NamedTuple
from weakref import ref

import psutil
import torch
from torch import Tensor

from ..model.fingerprint import tensor_samples

# For so many rows oneDNN is asked for its order. For a single one it keeps the plain order; for any more it takes this.
_ROWS = 16
# The share of the memory that is available when the first copy is made, which all copies may take.
_SHARE = 0.5


class _Copy(NamedTuple):
    """A weight's copy, with the marks and samples that the weight had."""

    weight: ref[Tensor]
    marks: tuple[int, int, bool]
    samples: bytes
    copy: Tensor


class ReorderedWeights:
    """Copies of a model's weights. They take as many bytes as those weights, and half of the free memory at most.

    Attributes:
        nbytes: bytes of all copies.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Drop all copies."""
        with self._lock:
            self._copies: dict[int, _Copy] = {}
            self._most: float | None = None
            self.nbytes = 0

    def of(self, weight: Tensor, transposed: bool) -> Tensor:
        """The copy of `weight` `[N, K]`, which is made at its first use; the weight itself where memory lacks.

        `transposed`: it is `[K, N]`, and what is returned is `[N, K]`.
        """
        found = self._copies.get(id(weight))
        if found is not None and found.weight() is weight and found.marks == (*_marks(weight), transposed):
            return found.copy
        return self._add(weight, transposed)

    def check(self) -> None:
        """Drop the copies of weights that have changed or are gone, also of those that changed through `.data`."""
        copies = [(key, found.weight(), found) for key, found in [*self._copies.items()]]
        weights = [weight for _, weight, _ in copies if weight is not None]
        seen = iter(tensor_samples(weights))
        for key, weight, found in copies:
            if weight is None or next(seen) != found.samples or found.marks[:2] != _marks(weight):
                self._drop(key)

    def _add(self, weight: Tensor, transposed: bool) -> Tensor:
        self._drop(id(weight))
        size = weight.numel() * weight.element_size()
        with self._lock:
            if self._most is None:
                self._most = _SHARE * psutil.virtual_memory().available
            if self.nbytes + size > self._most:
                return weight.T if transposed else weight
        (samples,) = tensor_samples([weight])
        plain = weight.detach().T.contiguous() if transposed else weight.detach()
        copy = torch.ops.mkldnn._reorder_linear_weight(plain, _ROWS)
        with self._lock:
            if id(weight) not in self._copies:
                self.nbytes += size
            self._copies[id(weight)] = _Copy(ref(weight), (*_marks(weight), transposed), samples, copy)
        return copy

    def _drop(self, key: int) -> None:
        with self._lock:
            found = self._copies.pop(key, None)
            if found is not None:
                self.nbytes -= found.copy.numel() * found.copy.element_size()


def _marks(weight: Tensor) -> tuple[int, int]:
    return weight._version, weight.data_ptr()
