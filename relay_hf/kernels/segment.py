"""Segment: keys and values of a run of tokens in one layer, stored once and attended by many rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Keys and values of one shared run of tokens, for one layer.

    Attributes:
        key: `[Hkv, P, D]`, rotated as attention sees it. Any strides with a last one of 1.
        value: `[Hkv, P, Dv]`, of the dtype of `key`. `Dv` may differ from `D`.
        start: position of the first token, the same in every row that uses the segment (tokens).
        rows: the batch rows that use the segment, in any order, each at most once. None: all rows. They are numbers on
            the host, so that no backend has to read them from the device.
    """

    key: torch.Tensor
    value: torch.Tensor
    start: int = 0
    rows: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """Number of tokens, `P`."""
        return self.key.shape[1]

    def __repr__(self) -> str:
        used_by = "all rows" if self.rows is None else f"{len(self.rows)} rows"
        shapes = f"key={tuple(self.key.shape)}, value={tuple(self.value.shape)}"
        return f"Segment({shapes}, {self.key.dtype}, start={self.start}, {used_by})"
