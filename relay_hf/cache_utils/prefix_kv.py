"""The tensors of a run of shared tokens: of one layer's attention, of one layer, and of a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.segment import Segment
from .state_layer import RecurrentState


@dataclass(frozen=True, eq=False)
class LayerKV:
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

    def first(self, length: int) -> LayerKV:
        """The first `length` tokens, as views."""
        if length == len(self):
            return self
        key, value = self.segment.key[:, :length], self.segment.value[:, :length]
        stored = (self.stored[0][:, :length], self.stored[1][:, :length])
        return LayerKV(replace(self.segment, key=key, value=value), stored)

    def after(self, length: int) -> LayerKV:
        """All but the first `length` tokens, as views."""
        key, value = self.segment.key[:, length:], self.segment.value[:, length:]
        stored = (self.stored[0][:, length:], self.stored[1][:, length:])
        return LayerKV(replace(self.segment, key=key, value=value), stored)

    def used(self, rows: tuple[int, ...] | None, start: int) -> LayerKV:
        """The same, used by `rows` (None: all) from position `start` on."""
        return replace(self, segment=replace(self.segment, rows=rows, start=start))

    def clone(self) -> LayerKV:
        """The same in tensors of its own."""
        key, value = self.segment.key.clone(), self.segment.value.clone()
        stored = (key, value) if self.stored_as_attended else (self.stored[0].clone(), self.stored[1].clone())
        return LayerKV(replace(self.segment, key=key, value=value), stored)

    def compact(self) -> LayerKV:
        """The same without memory beyond its tokens, each tensor once: a pickle holds all memory of every tensor."""
        if any(t.untyped_storage().nbytes() > t.numel() * t.element_size() for t in self.tensors()):
            return self.clone()
        return replace(self, stored=(self.segment.key, self.segment.value)) if self.stored_as_attended else self

    @classmethod
    def joined(cls, parts: Sequence[LayerKV]) -> LayerKV:
        """Runs that follow each other, as one, in new tensors."""
        key = torch.cat([part.segment.key for part in parts], dim=1)
        value = torch.cat([part.segment.value for part in parts], dim=1)
        stored = (key, value)
        if not all(part.stored_as_attended for part in parts):
            first, second = (torch.cat([part.stored[which] for part in parts], dim=1) for which in (0, 1))
            stored = (first, second)
        return cls(replace(parts[0].segment, key=key, value=value), stored)


@dataclass(frozen=True, eq=False)
class LayerState:
    """The tensors of one layer for a run of shared tokens: keys and values, a recurrent state, both, or nothing.

    Attributes:
        kv: keys and values of every token, or None.
        state: the recurrent state after the last token, or None.
    """

    kv: LayerKV | None = None
    state: RecurrentState | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold memory, each once."""
        return (() if self.kv is None else self.kv.tensors()) + (() if self.state is None else self.state.tensors())

    def first(self, length: int) -> LayerState:
        """The first `length` tokens, as views, without a recurrent state, which is not known there."""
        return LayerState(self.kv and self.kv.first(length))

    def after(self, length: int) -> LayerState:
        """All but the first `length` tokens, as views."""
        return LayerState(self.kv and self.kv.after(length), self.state)

    def clone(self) -> LayerState:
        """The same in tensors of its own. A state is never a view, so it is not copied."""
        return LayerState(self.kv and self.kv.clone(), self.state)


@dataclass(frozen=True, eq=False)
class PrefixKV:
    """The tensors of a whole model for a run of shared tokens.

    Attributes:
        start: position of the first token.
        length: number of tokens.
        layers: the tensors of each layer.
    """

    start: int
    length: int
    layers: tuple[LayerState, ...]

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.start + self.length

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer.tensors())

    @property
    def recurrent(self) -> bool:
        """Whether any layer has a recurrent state. A state belongs to the last token alone."""
        return any(layer.state is not None for layer in self.layers)

    def first(self, length: int) -> PrefixKV:
        """The first `length` tokens, as views; without states, unless these are all tokens."""
        if length == self.length:
            return self
        return PrefixKV(self.start, length, tuple(layer.first(length) for layer in self.layers))

    def after(self, length: int) -> PrefixKV:
        """All but the first `length` tokens, as views."""
        if length == 0:
            return self
        layers = tuple(layer.after(length) for layer in self.layers)
        return PrefixKV(self.start + length, self.length - length, layers)

    def clone(self) -> PrefixKV:
        """The same in tensors of its own."""
        return replace(self, layers=tuple(layer.clone() for layer in self.layers))

    @classmethod
    def joined(cls, runs: Sequence[PrefixKV]) -> PrefixKV:
        """Runs that follow each other, as one, in new tensors."""
        layers = []
        for pieces in zip(*(run.layers for run in runs), strict=True):
            kv = [piece.kv for piece in pieces if piece.kv is not None]
            layers.append(LayerState(LayerKV.joined(kv) if kv else None, pieces[-1].state))
        return cls(runs[0].start, sum(run.length for run in runs), tuple(layers))
