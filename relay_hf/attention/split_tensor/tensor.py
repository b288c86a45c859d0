"""Keys, values and scores whose columns lie in two places: for attention code that is a model's own.

A model with attention code of its own multiplies queries with keys, adds a mask or a bias, takes a softmax over the
columns and multiplies with values. A `SplitTensor` stands in for the keys and values: it has the shape and the columns
that stock's would have, `[padding | shared | own]`, and holds the shared part once and the own part per row. What the
model's code does to it is done to both parts; the softmax is over both. So the identity of RelayAttention
(arXiv 2402.14808) holds whatever bias or mask the model adds: over the shared part the queries of all rows are one
matrix, and it is read once.

An operation that is not known here gets the whole tensor, put together for it. A score before its softmax can't be put
together (what stock has in a column of padding is not known): there it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UnfitModelError
from .columns import Columns

# What is known, by the name that PyTorch gives a function; `operations.py` fills it.
OPERATIONS: dict[str, Callable[..., Any]] = {}


class SplitTensor(Tensor):
    """A tensor `[rows * n, ..., columns, ...]` in two parts along its columns.

    Attributes:
        shared: the shared columns: `[rows * n, ...]`, or `[n, ...]` where they are the same for all rows.
        own: the own columns, `[rows * n, ...]`.
        axis: the axis of columns.
        columns: where the columns of each row lie.
        padded: columns of padding hold zeros, so that the whole is known.
    """

    shared: Tensor
    own: Tensor
    axis: int
    columns: Columns
    padded: bool

    @staticmethod
    def __new__(cls, shared: Tensor, own: Tensor, axis: int, columns: Columns, padded: bool = True) -> SplitTensor:
        """Of its two parts."""
        shape = list(own.shape)
        shape[axis] += columns.offset
        new = Tensor._make_wrapper_subclass(cls, shape, dtype=own.dtype, device=own.device)
        new.shared, new.own, new.axis, new.columns, new.padded = shared, own, axis % own.dim(), columns, padded
        return new

    def like(self, shared: Tensor, own: Tensor, axis: int | None = None, padded: bool | None = None) -> SplitTensor:
        """One with other parts."""
        axis = self.axis if axis is None else axis
        return SplitTensor(shared, own, axis, self.columns, self.padded if padded is None else padded)

    @property
    def same_for_all(self) -> bool:
        """Whether the shared part is held once for all rows."""
        return self.columns.rows > 1 and self.shared.shape[0] * self.columns.rows == self.own.shape[0]

    def whole(self) -> Tensor:
        """The tensor in one piece."""
        if not self.padded:
            raise UnfitModelError("attention code of the model's own does to its scores what is not known")
        return self.columns.join(self.shared, self.own, self.axis)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if name in _ATTRIBUTES:
                return func(*args, **kwargs)
            operation = OPERATIONS.get(name)
            found = NotImplemented if operation is None else operation(func, *args, **kwargs)
            if found is NotImplemented:
                return func(*_whole(args), **{name: _whole(value) for name, value in kwargs.items()})
            return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise UnfitModelError(f"attention code of the model's own does to its keys what is not known ({func})")


# What a tensor is asked about itself; all of it is in its wrapper.
_ATTRIBUTES = {"__len__", "device", "dim", "dtype", "is_cuda", "is_floating_point", "layout", "ndim", "numel"}
_ATTRIBUTES |= {"requires_grad", "shape", "size"}


def _whole(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_whole, value))
    return value.whole() if isinstance(value, SplitTensor) else value
