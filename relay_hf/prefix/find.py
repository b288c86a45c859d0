"""The rows of a batch, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prompts:
    """The rows of a generate() call, on the host.

    Attributes:
        ids: `[B, L]` int64.
        start: `[B]` int64, columns of left padding.
        end: `[B]` int64, one past the last column of the run of attended tokens that begins at `start`.
        tokens: attended tokens of all rows.
    """

    ids: Tensor
    start: Tensor
    end: Tensor
    tokens: int

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor | None) -> Prompts:
        """Read `[B, L]` ids and mask (None: all attended) from any device."""
        ids = input_ids.detach().to("cpu", torch.int64)
        rows, columns = ids.shape
        if attention_mask is None:
            return cls(ids, torch.zeros(rows, dtype=torch.int64), torch.full((rows,), columns), ids.numel())
        attended = attention_mask.detach().to("cpu", torch.bool)
        start = attended.int().argmax(dim=1)
        later_gap = ~attended & (torch.arange(columns) > start[:, None])
        end = torch.where(later_gap.any(dim=1), later_gap.int().argmax(dim=1), columns)
        return cls(ids, start, torch.where(attended.any(dim=1), end, start), int(attended.sum()))

    @property
    def holes(self) -> bool:
        """Whether any row has padding behind its first token."""
        return bool((self.end < self.ids.shape[1]).any())

    def row(self, index: int, own: int = 0) -> Tensor:
        """The tokens of a row's run, without the last `own`: `[n]`."""
        return self.ids[index, int(self.start[index]) : max(int(self.end[index]) - own, int(self.start[index]))]
