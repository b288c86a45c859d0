"""A run of tokens whose keys and values are stored once and attended by many rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Keys and values of one shared run of tokens, for one layer.

    Args:
        key: `[Hkv, P, D]`, rotated as attention sees it. Any strides with a last one of 1.
        value: `[Hkv, P, Dv]`, of the dtype of `key`. `Dv` may differ from `D`.
        start: Position of the first token, the same in every row that uses the segment.
        rows: `[R]` int64, the batch rows that use the segment, each at most once. None: all rows. Layers of one
            forward should hold the same tensor: `Plan` recognises it by identity.
    """

    key: torch.Tensor
    value: torch.Tensor
    start: int = 0
    rows: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens, `P`."""
        return self.key.shape[1]

    def __repr__(self) -> str:
        used_by = "all rows" if self.rows is None else f"{self.rows.numel()} rows"
        shapes = f"key={tuple(self.key.shape)}, value={tuple(self.value.shape)}"
        return f"Segment({shapes}, {self.key.dtype}, start={self.start}, {used_by})"
