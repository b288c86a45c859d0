"""What a layer of a RelayCache shows as Transformers' own layer does: keys and values of whole rows, to be changed too.

They are joined when somebody reads them, and remembered until the cache is used further. Whoever has written to them by
then, or has assigned others, has a layer of Transformers' own in place of this one: his content counts, and nothing of
it is shared any more.

Another thread may read them while a forward adds columns. So each remembers how many own columns it was made of, and is
compared with a new join of exactly as many.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import RelayError
from ..model.upstream.caches import CacheLayerMixin, stock_layer
from .row_layout import RowLayout

_NAMES = ("keys", "values")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ShownRows(NamedTuple):
    """Whole rows that somebody has read, and the number of own columns that they were made of."""

    tensor: Tensor
    own_length: int


class StockView(CacheLayerMixin):
    """A layer that can show whole rows, and become Transformers' own layer."""

    rows: RowLayout
    sliding_window: int | None
    own_length: int
    _shown: dict[int, ShownRows]  # the whole rows that were read: keys (0), values (1)

    def joined(self, part: int, own_length: int | None = None) -> Tensor:
        """Stored keys (part 0) or values (1) in the caller's columns, `[B, H, L, D]`, in a new tensor.

        `own_length`: only so many own columns, the first ones; None: all.
        """
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

    def changed_alone(self, method: str, *args: Any) -> bool:
        """Whether a caller changes this layer and not all of them, by the method of this name.

        Then stock's layer does it, in place of this one: the segments and the layout of rows belong to all layers.
        """
        if self.rows.together or not self.is_initialized:
            return False
        with self.rows.lock:
            self.settle()
            if isinstance(self, StockView):
                self.become_stock()
        getattr(self, method)(*args)
        return True

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
        for part, shown in self._shown.items():
            setattr(stock, _NAMES[part], shown.tensor)
        self.rows.shown = True
        self.__class__, self.__dict__ = type(stock), vars(stock)

    def is_changed(self) -> bool:
        """Whether somebody has written to the whole rows that were shown.

        Raises:
            RelayError: somebody has, and the layer has stored more since.
        """
        with self.rows.lock:
            changed = [each for part, each in self._shown.items() if not _same(each.tensor, self._whole(part, each[1]))]
            if any(each.own_length != self.own_length for each in changed):
                raise RelayError(
                    "keys or values of this RelayCache were changed while a forward runs. Change them between "
                    "forwards, or give the model what the cache's to_dynamic() returns."
                )
            return bool(changed)

    def settle(self) -> None:
        """Become stock's layer if the whole rows that were shown were written to, else drop them."""
        with self.rows.lock:
            if self.is_changed():
                self.become_stock()
            else:
                self.forget()

    def forget(self) -> None:
        """Drop the whole rows that were shown."""
        self._shown = {}

    def crop_shown(self, removed: int) -> None:
        """Leave the last `removed` columns out of the whole rows that were shown, by views, as stock's crop does."""
        if removed and self.sliding_window is not None and self.get_seq_length() >= self.sliding_window:
            self.forget()  # columns will be in the window that were not shown
        elif removed:
            self._shown = {
                part: ShownRows(tensor[:, :, : max(tensor.shape[2] - removed, 0)], own_length - removed)
                for part, (tensor, own_length) in self._shown.items()
                if own_length == self.own_length
            }

    def _show(self, part: int) -> Tensor | None:
        with self.rows.lock:
            own_length, shown = self.own_length, self._shown.get(part)
            if not self.is_initialized or not (own_length or self.rows.own_start is None):
                return None  # its first columns are yet to be stored
            if shown is None or shown.own_length != own_length:
                shown = self._shown[part] = ShownRows(self._whole(part, own_length), own_length)
                self.rows.shown = True
            return shown.tensor

    def _assign(self, part: int, tensor: Tensor | None) -> None:
        with self.rows.lock:
            shown = self._shown.get(part)
            if tensor is None or shown is None or tensor is not shown.tensor:  # peft assigns what it has read
                self.become_stock()
                setattr(self, _NAMES[part], tensor)

    def _whole(self, part: int, own_length: int) -> Tensor:
        whole = self.joined(part, own_length)
        return whole if self.sliding_window is None else whole[:, :, 1 - self.sliding_window :]

    def _empty_stock(self) -> Any:
        return stock_layer(self.sliding_window)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits. NaN is no number that equals itself."""
    if one.dtype is not other.dtype or one.device != other.device:
        return False
    bits = _BITS[one.element_size()]
    return torch.equal(one.view(bits), other.view(bits))
