"""Tensors that hold the shared part of keys, values or scores once, for models with attention code of their own."""

from . import operations  # noqa: F401  (registers the operations on the tensors)
from .columns import Columns
from .tensor import SplitTensor

__all__ = ["Columns", "SplitTensor"]
