"""The layout of a cache's rows in the columns of the caller's prompt: padding, shared tokens, own tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class RowLayout:
    """The layout of a cache's rows in the caller's columns; one object for all layers.

    Own KV column `i` is the caller's column `offset + i`. The columns before `offset` are padding or in segments. So
    are the first `own_start[b]` own columns of row b: their KV is computed, but never attended to.

    Attributes:
        offset: columns of the caller that come before own KV.
        shared_length: tokens that the segments hold for a row: one number for all rows, or one for each. Equal numbers
            become one.
        own_start: `[B]` int64, or None when it is 0 for all rows.
        holes: `[B, n]` bool, which of the first n own columns may be attended to; None when there are no holes.
        reserve: own columns to make room for when a buffer is allocated.
        spare: bytes that a layer may take for columns that it does not need yet.
        changes: how often the rows were changed; a change may have written to `own_start` and `holes` in place.
        shown: a layer has shown keys or values, which somebody may have changed since, or is Transformers' own by now.
        lock: held while keys and values are shown, compared or dropped, and while rows are changed. A forward that adds
            columns does not take it.
        together: all layers are being changed alike, by a method of the cache.
        whole_rows: the model gets keys and values of whole rows, in the caller's columns, as split tensors.
    """

    offset: int = 0
    shared_length: int | tuple[int, ...] = 0
    own_start: Tensor | None = None
    holes: Tensor | None = None
    reserve: int = 0
    spare: int = 0
    whole_rows: bool = False
    changes: int = 0
    shown: bool = False
    together: bool = False
    lock: Any = field(default_factory=RLock, repr=False)

    @contextmanager
    def all_layers(self) -> Iterator[None]:
        """Within it all layers are changed alike."""
        with self.lock:
            before, self.together = self.together, True
            try:
                yield
            finally:
                self.together = before

    def __post_init__(self) -> None:
        if isinstance(self.shared_length, tuple) and len(set(self.shared_length)) == 1:
            self.shared_length = self.shared_length[0]

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a lock of its own."""
        return {name: value for name, value in vars(self).items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of an earlier version of 0.1.0 call `whole_rows` "parted"."""
        self.__dict__.update({"whole_rows" if name == "parted" else name: value for name, value in state.items()})
        self.lock = RLock()

    @property
    def padded(self) -> bool:
        """Whether any row has padding before its first token."""
        if isinstance(self.shared_length, int):
            return self.own_start is not None or self.offset != self.shared_length
        starts = [0] * len(self.shared_length) if self.own_start is None else self.own_start.tolist()
        return any(self.offset + start != shared for start, shared in zip(starts, self.shared_length, strict=True))

    @property
    def shared_lengths(self) -> tuple[int, ...]:
        """`shared_length` as a tuple: of each row, or a single number if it is the same for all rows."""
        return (self.shared_length,) if isinstance(self.shared_length, int) else self.shared_length

    def reorder(self, order: Tensor) -> None:
        """Let row i become what row `order[i]` was; in place, where that is possible."""

        def reordered(state: Tensor) -> Tensor:
            new = state.index_select(0, order.to(state.device))
            return new if state.is_inference() else state.copy_(new)

        self._change(reordered)

    def change_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Repeat or select rows, as `change` does along a tensor's first dimension."""
        self._change(change)
        self.__post_init__()
        if self.own_start is not None and not self.own_start.any():
            self.own_start = None

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self.changes += 1
        self.own_start = None if self.own_start is None else change(self.own_start)
        self.holes = None if self.holes is None else change(self.holes)
        if not isinstance(self.shared_length, int):
            self.shared_length = tuple(change(torch.tensor(self.shared_length, device="cpu")).tolist())
