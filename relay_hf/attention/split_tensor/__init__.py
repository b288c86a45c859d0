"""Keys, values and scores in a shared and an own part, for attention code that is a model's own."""

from . import operations  # noqa: F401  (what can be done to the tensors)
from .columns import Columns
from .tensor import SplitTensor

__all__ = ["Columns", "SplitTensor"]
