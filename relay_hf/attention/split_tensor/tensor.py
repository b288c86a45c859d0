"""SplitTensor: keys, values or scores in two parts, shared and own, for models with attention code of their own.

A model with attention code of its own multiplies queries with keys, adds a mask or a bias, takes a softmax over the
columns and multiplies with values. A `SplitTensor` replaces the keys and values. It has the shape and the columns that
stock's would have, `[padding | shared | own]`, and holds the shared part once and the own part per row. Each operation
of the model's code is applied to both parts, and the softmax goes over both. So the identity of RelayAttention
(arXiv 2402.14808) holds for any bias or mask that the model adds. The queries of all rows are one matrix over the
shared part, which is read once.

An operation that is not known here gets a whole tensor, joined from the two parts. Scores before their softmax can't be
joined, because stock's scores in columns of padding are not known: there the operation is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UnfitModelError
from .columns import Columns

# The known operations, by PyTorch's name of the function; `operations.py` fills it.
OPERATIONS: dict[str, Callable[..., Any]] = {}


class SplitTensor(Tensor):
    """A tensor `[rows * n, ..., columns, ...]` in two parts along its columns.

    Attributes:
        shared: the shared columns: `[rows * n, ...]`, or `[n, ...]` where they are the same for all rows.
        own: the own columns, `[rows * n, ...]`.
        axis: the axis of columns.
        columns: the columns of each row.
        padded: columns of padding hold zeros, so that the parts can be joined.
    """

    shared: Tensor
    own: Tensor
    axis: int
    columns: Columns
    padded: bool

    @staticmethod
    def __new__(cls, shared: Tensor, own: Tensor, axis: int, columns: Columns, padded: bool = True) -> SplitTensor:
        """A tensor of these two parts."""
        shape = list(own.shape)
        shape[axis] += columns.offset
        new = Tensor._make_wrapper_subclass(cls, shape, dtype=own.dtype, device=own.device)
        new.shared, new.own, new.axis, new.columns, new.padded = shared, own, axis % own.dim(), columns, padded
        return new

    def like(self, shared: Tensor, own: Tensor, axis: int | None = None, padded: bool | None = None) -> SplitTensor:
        """A tensor with other parts, and the same columns."""
        axis = self.axis if axis is None else axis
        return SplitTensor(shared, own, axis, self.columns, self.padded if padded is None else padded)

    @property
    def same_for_all(self) -> bool:
        """Whether the shared part is held once for all rows."""
        return self.columns.rows > 1 and self.shared.shape[0] * self.columns.rows == self.own.shape[0]

    def whole(self) -> Tensor:
        """The tensor in one piece."""
        if not self.padded:
            raise UnfitModelError("the model's own attention code applies an unknown operation to its scores")
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
        raise UnfitModelError(f"the model's own attention code applies an unknown operation to its keys ({func})")


# Questions about a tensor that its wrapper answers.
_ATTRIBUTES = {"__len__", "device", "dim", "dtype", "is_cuda", "is_floating_point", "layout", "ndim", "numel"}
_ATTRIBUTES |= {"requires_grad", "shape", "size"}


def _whole(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_whole, value))
    return value.whole() if isinstance(value, SplitTensor) else value
