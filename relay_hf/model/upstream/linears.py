"""Transformers' own linear layer: that of GPT-2 and its relatives, whose weight is stored transposed."""

from __future__ import annotations

from transformers.pytorch_utils import Conv1D as TransposedLinear

__all__ = ["ADDMM", "TransposedLinear"]

ADDMM = "addmm"  # the function by which it multiplies: bias + x @ weight
