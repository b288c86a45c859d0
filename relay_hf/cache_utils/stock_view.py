"""What a layer of a RelayCache shows as Transformers' own layer does: keys and values of whole rows, to be changed too.

They are joined when somebody reads them, and remembered until the cache is used further. Whoever has written to them by
then, or has assigned others, has a layer of Transformers' own in place of this one: his content counts, and nothing of
it is shared any more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.upstream.caches import CacheLayerMixin, stock_layer
from .row_layout import RowLayout

_NAMES = ("keys", "values")


class StockView(CacheLayerMixin):
    """A layer that can show whole rows, and become Transformers' own layer."""

    rows: RowLayout
    sliding_window: int | None
    _shown: dict[int, Tensor]  # the whole rows that were read: keys (0), values (1)

    def joined(self, part: int) -> Tensor:
        """Stored keys (part 0) or values (1) in the caller's columns, `[B, H, L, D]`, in a new tensor."""
        raise NotImplementedError

    @property
    def keys(self) -> Tensor | None:
        """Keys of whole rows, as stock's layer holds them: `[B, Hkv, L, D]`, zero in padding; None in an empty layer.

        The first read joins them, in as much memory as stock's layer takes. It is free again when the cache is used
        further.
        """
        return self._show(0)

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self._assign(0, keys)

    @property
    def values(self) -> Tensor | None:
        """Values of whole rows, like `keys`: `[B, Hkv, L, Dv]`."""
        return self._show(1)

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self._assign(1, values)

    @property
    def is_sliding(self) -> bool:
        """Whether stock's layer drops what has left a window."""
        return self.sliding_window is not None

    @property
    def _sliding_window_tensor(self) -> Tensor | None:
        """The third part of what iterating over a cache gives of a layer."""
        where = self.device if self.is_initialized else "cpu"
        return None if self.sliding_window is None else torch.tensor(self.sliding_window, device=where)

    def __getattr__(self, name: str) -> Any:
        """As stock's layer, it has a device and a dtype from its first update on."""
        if name in ("device", "dtype") and self.is_initialized:
            return getattr(self.own_tensors()[0], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def own_tensors(self) -> tuple[Tensor, ...]:
        """The buffers of own keys and values."""
        raise NotImplementedError

    def get_max_length(self) -> int:
        """Stock's answer: the window (tokens), or -1: no maximum."""
        return -1 if self.sliding_window is None else self.sliding_window

    def to_stock(self, removed: int = 0) -> Any:
        """The same content in a new layer of Transformers' own, without the last `removed` columns."""
        stock = self._empty_stock()
        if self.is_initialized:
            columns = max(self.get_seq_length() - removed, 0)
            stock.update(self.joined(0)[:, :, :columns], self.joined(1)[:, :, :columns])
        return stock

    def become_stock(self, removed: int = 0) -> None:
        """Become what `to_stock` returns. It is still the same object, for whoever holds it."""
        self.crop_shown(removed)
        stock = self.to_stock(removed)
        for part, tensor in self._shown.items():
            setattr(stock, _NAMES[part], tensor)
        self.rows.shown = True
        self.__class__, self.__dict__ = type(stock), vars(stock)

    def is_changed(self) -> bool:
        """Whether somebody has written to the whole rows that were shown."""
        return any(not _same(tensor, self._whole(part)) for part, tensor in self._shown.items())

    def forget(self) -> None:
        """Drop the whole rows that were shown."""
        self._shown = {}

    def crop_shown(self, removed: int) -> None:
        """Leave the last `removed` columns out of the whole rows that were shown, by views, as stock's crop does."""
        if removed and self.sliding_window is not None and self.get_seq_length() >= self.sliding_window:
            self.forget()  # columns will be in the window that were not shown
        elif removed:
            shown = self._shown.items()
            self._shown = {part: tensor[:, :, : max(tensor.shape[2] - removed, 0)] for part, tensor in shown}

    def _show(self, part: int) -> Tensor | None:
        if not self.is_initialized:
            return None
        if part not in self._shown:
            self._shown[part] = self._whole(part)
            self.rows.shown = True
        return self._shown[part]

    def _assign(self, part: int, tensor: Tensor | None) -> None:
        if tensor is None or tensor is not self._shown.get(part):  # what was read may be assigned again, as peft does
            self.become_stock()
            setattr(self, _NAMES[part], tensor)

    def _whole(self, part: int) -> Tensor:
        return self.joined(part) if self.sliding_window is None else self.joined(part)[:, :, 1 - self.sliding_window :]

    def _empty_stock(self) -> Any:
        return stock_layer(self.sliding_window)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and one.device == other.device and torch.equal(one, other)
