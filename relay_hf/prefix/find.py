"""What the rows of a batch share."""

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
    def first_row(self) -> Tensor:
        """The tokens of row 0's run: `[n]`; none where there is no row."""
        if not len(self.ids):
            return self.ids.new_zeros(0)
        return self.ids[0, int(self.start[0]) : int(self.end[0])]

    @property
    def holes(self) -> bool:
        """Whether any row has padding behind its first token."""
        return bool((self.end < self.ids.shape[1]).any())

    def shared_length(self, own: int) -> int:
        """How many tokens all rows start with, leaving each at least `own` tokens of its own."""
        limit = int((self.end - self.start).min()) - own
        if limit <= 0:
            return 0
        # Row 0 slides under each row's own padding; rows with the same padding are compared in one go.
        reference = self.first_row[:limit]
        shared = limit
        for start in self.start.unique().tolist():
            rows = self.ids[self.start == start, start : start + shared]
            same = (rows == reference[:shared]).all(dim=0)
            shared = shared if bool(same.all()) else int(same.int().argmin())
        return shared


def common_length(one: Tensor, other: Tensor) -> int:
    """How many leading tokens two `[n]` and `[m]` id tensors have in common."""
    length = min(len(one), len(other))
    same = one[:length] == other[:length]
    return length if bool(same.all()) else int(same.int().argmin())
