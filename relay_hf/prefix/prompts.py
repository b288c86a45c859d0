"""The rows of a batch, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model.device import on_host


@dataclass(frozen=True, eq=False)
class Prompts:
    """The rows of a generate() call, on the host.

    Attributes:
        ids: `[B, L]` int64.
        start: `[B]` int64, columns of left padding.
        end: `[B]` int64, one past the last column of the unbroken stretch of attended tokens from `start` on.
        tokens: number of attended tokens of all rows.
        attended: `[B, L]` bool, or None if all tokens are attended.
    """

    ids: Tensor
    start: Tensor
    end: Tensor
    tokens: int
    attended: Tensor | None = None

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor | None) -> Prompts:
        """Read `[B, L]` ids and mask (None: all attended) from any device.

        Raises:
            ValueError: the mask is not as large as the ids.
        """
        ids = input_ids.detach().to("cpu", torch.int64)
        rows, columns = ids.shape
        if attention_mask is not None and attention_mask.shape != ids.shape:
            expected, got = tuple(ids.shape), tuple(attention_mask.shape)
            raise ValueError(f"attention_mask must be as large as input_ids, {expected}; got {got}.")
        attended = None if attention_mask is None else on_host(attention_mask)
        if attended is None or attended.all():
            return cls(ids, ids.new_zeros(rows), ids.new_full((rows,), columns), ids.numel())
        start = attended.argmax(axis=1)
        later_gap = ~attended & (np.arange(columns) > start[:, None])
        end = np.where(later_gap.any(axis=1), later_gap.argmax(axis=1), columns)
        end = np.where(attended.any(axis=1), end, start)
        tokens = int(np.count_nonzero(attended))
        return cls(ids, torch.from_numpy(start), torch.from_numpy(end), tokens, torch.from_numpy(attended))

    @property
    def longest(self) -> int:
        """The most tokens that a row has before its first hole."""
        return int((self.end - self.start).max()) if len(self.ids) else 0

    @property
    def holes(self) -> bool:
        """Whether any row has padding behind its first token."""
        return bool((self.end < self.ids.shape[1]).any())

    def row(self, index: int, own: int = 0) -> Tensor:
        """The tokens of a row before its first hole, without the last `own`: `[n]`."""
        return self.rows(own)[index]

    def rows(self, own: int = 0) -> list[Tensor]:
        """`row` of each row."""
        starts, ends = self.start.tolist(), (self.end - own).tolist()
        return [row[start : max(start, end)] for row, start, end in zip(self.ids, starts, ends, strict=True)]
