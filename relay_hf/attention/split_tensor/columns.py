"""The columns of a batch's rows, `[padding | shared | own]`, and how whole tensors are split and joined along them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...cache_utils.columns import join_columns

_KEPT_SPLITS = 4  # masks of one forward: one a kind of layer


@dataclass(eq=False)
class Columns:
    """`[padding | shared | own]`, the columns of every row. A row's shared columns end where its own tokens begin.

    Attributes:
        rows: number of rows.
        offset: columns before the own part.
        shared: columns of the shared part.
        own_start: `[B]`, leading columns of the own part that hold no own token of a row, but the end of its prefix or
            its padding; None for 0.
    """

    rows: int
    offset: int
    shared: int
    own_start: Tensor | None = None
    _splits: dict[tuple[int, int, int], tuple[Tensor, int, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first shared column of a row whose own_start is 0."""
        return self.offset - self.shared

    def split(self, tensor: Tensor, axis: int, dims: int, entries: int) -> tuple[Tensor, Tensor]:
        """The shared and the own columns of a whole tensor.

        Args:
            tensor: broadcastable to `dims` dimensions with `entries` along the first, a multiple of the rows.
            axis: of its columns, negative.
        """
        key, version = (id(tensor), dims, entries), -1 if tensor.is_inference() else tensor._version
        known = self._splits.get(key)
        if known is not None and known[0] is tensor and known[1] == version >= 0:
            return known[2]  # the mask that the layer before had
        own = tensor.narrow(axis, self.offset, tensor.shape[axis] - self.offset)
        parts = (self._shared_part(tensor, axis, dims, entries), own)
        if len(self._splits) >= _KEPT_SPLITS:
            self._splits.pop(next(iter(self._splits)))
        self._splits[key] = (tensor, version, parts)
        return parts

    def _shared_part(self, tensor: Tensor, axis: int, dims: int, entries: int) -> Tensor:
        if self.own_start is None:
            return tensor.narrow(axis, self.first, self.shared)
        full = tensor[(None,) * (dims - tensor.dim())]
        by_row = full.expand(entries, *full.shape[1:]).unflatten(0, (self.rows, entries // self.rows)).movedim(axis, 1)
        columns = (self.first + self.own_start)[:, None] + torch.arange(self.shared, device=tensor.device)
        # A chunk of a prefill may end before some row's own tokens begin. Nothing reads the output of such a row.
        columns = columns.clamp(max=by_row.shape[1] - 1)
        rows = torch.arange(self.rows, device=tensor.device)[:, None]
        picked = by_row[rows, columns]
        return picked.movedim(1, axis).flatten(0, 1)

    def join(self, shared: Tensor, own: Tensor, axis: int) -> Tensor:
        """The two parts as one whole tensor, zero in columns of padding."""
        entries = len(own) // self.rows
        parts = shared.unflatten(0, (-1, entries)).expand(self.rows, *[-1] * own.dim())
        return join_columns(own, axis, self.offset, self.own_start, [[part] for part in parts])

    def hide_foreign(self, own: Tensor) -> Tensor:
        """Scores of own columns, `[entries, ..., T, S]`, at -inf in columns that hold no own token of the row."""
        if self.own_start is None:
            return own
        foreign = torch.arange(own.shape[-1], device=own.device) < self.own_start[:, None]
        shape = (self.rows, *[1] * (own.dim() - 1), own.shape[-1])
        return own.unflatten(0, (self.rows, -1)).masked_fill(foreign.view(shape), -torch.inf).flatten(0, 1)
