"""What one layer keeps of a run of tokens that rows share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.segment import Segment
from .state import RecurrentState


@dataclass(frozen=True, eq=False)
class SharedKV:
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

    def first(self, length: int) -> SharedKV:
        """The first `length` tokens, as views."""
        if length == len(self):
            return self
        key, value = self.segment.key[:, :length], self.segment.value[:, :length]
        stored = (self.stored[0][:, :length], self.stored[1][:, :length])
        return SharedKV(replace(self.segment, key=key, value=value), stored)

    def clone(self) -> SharedKV:
        """The same in tensors of its own."""
        key, value = self.segment.key.clone(), self.segment.value.clone()
        stored = (key, value) if self.stored_as_attended else (self.stored[0].clone(), self.stored[1].clone())
        return SharedKV(replace(self.segment, key=key, value=value), stored)

    def then(self, more: SharedKV) -> SharedKV:
        """This run followed by `more`, in new tensors."""
        key = torch.cat([self.segment.key, more.segment.key], dim=1)
        value = torch.cat([self.segment.value, more.segment.value], dim=1)
        if self.stored_as_attended:
            stored = (key, value)
        else:
            pairs = zip(self.stored, more.stored, strict=True)
            first, second = (torch.cat(pair, dim=1) for pair in pairs)
            stored = (first, second)
        return SharedKV(replace(self.segment, key=key, value=value), stored)


@dataclass(frozen=True, eq=False)
class SharedLayer:
    """What one layer keeps of a run of shared tokens: keys and values, a recurrent state, both, or nothing.

    Attributes:
        kv: of every token.
        state: after the last token.
    """

    kv: SharedKV | None = None
    state: RecurrentState | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold memory, each once."""
        return (() if self.kv is None else self.kv.tensors()) + (() if self.state is None else self.state.tensors())

    def first(self, length: int) -> SharedLayer:
        """The first `length` tokens, as views.

        Raises:
            ValueError: the layer is recurrent: what its state was `length` tokens in is not known.
        """
        if self.state is not None:
            raise ValueError(f"a recurrent state can't be cut back to {length} tokens")
        return SharedLayer(self.kv and self.kv.first(length))

    def clone(self) -> SharedLayer:
        """The same in tensors of its own; a state's are its own as they are."""
        return SharedLayer(self.kv and self.kv.clone(), self.state)

    def then(self, more: SharedLayer) -> SharedLayer:
        """This run followed by `more`, in new tensors."""
        kv = more.kv if self.kv is None or more.kv is None else self.kv.then(more.kv)
        return SharedLayer(kv, more.state)
