"""One layer's keys and values of a shared segment."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.segment import Segment


@dataclass(frozen=True, eq=False)
class SharedLayer:
    """K and V of one layer over a run of shared tokens, without a batch dimension.

    Attributes:
        segment: as attention sees them: key `[Hkv, P, D]`, value `[Hkv, P, Dv]`.
        stored: as the model's own cache stores them: the same tensors, except in models that cache latents and
            expand them for attention (MLA): `[1, P, kv_lora_rank]` and `[1, P, qk_rope_head_dim]`.
    """

    segment: Segment
    stored: tuple[Tensor, Tensor]

    def __len__(self) -> int:
        return self.segment.length

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold memory, each once."""
        attended = (self.segment.key, self.segment.value)
        return attended if self.stored_as_attended else attended + self.stored

    @property
    def stored_as_attended(self) -> bool:
        """Whether the model's own cache stores what attention sees."""
        attended = (self.segment.key, self.segment.value)
        return all(s.data_ptr() == a.data_ptr() for s, a in zip(self.stored, attended, strict=True))

    def first(self, length: int) -> SharedLayer:
        """The first `length` tokens, as views."""
        if length == len(self):
            return self
        key, value = self.segment.key[:, :length], self.segment.value[:, :length]
        stored = (self.stored[0][:, :length], self.stored[1][:, :length])
        return SharedLayer(replace(self.segment, key=key, value=value), stored)

    def clone(self) -> SharedLayer:
        """The same in tensors of its own."""
        key, value = self.segment.key.clone(), self.segment.value.clone()
        stored = (key, value) if self.stored_as_attended else (self.stored[0].clone(), self.stored[1].clone())
        return SharedLayer(replace(self.segment, key=key, value=value), stored)

    def then(self, more: SharedLayer) -> SharedLayer:
        """This run followed by `more`, in new tensors."""
        key = torch.cat([self.segment.key, more.segment.key], dim=1)
        value = torch.cat([self.segment.value, more.segment.value], dim=1)
        if self.stored_as_attended:
            stored = (key, value)
        else:
            pairs = zip(self.stored, more.stored, strict=True)
            first, second = (torch.cat(pair, dim=1) for pair in pairs)
            stored = (first, second)
        return SharedLayer(replace(self.segment, key=key, value=value), stored)
