"""The forward that is running now: what its cache, its masks and its attention layers tell one another.

Transformers passes neither the cache to the attention function nor our arguments through `generate()`. So the forward
that runs with a RelayCache is held in a ContextVar from the model's pre-hook to its forward hook, and every layer
finds it there: each thread sees its own, and nothing is seen outside such a forward.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedConfig

    from ..cache_utils import RelayCache, RelayLayer
    from ..kernels.plan import Plan
    from .static_step import StaticStep


@dataclass(eq=False)
class ForwardContext:
    """One relayed forward.

    Attributes:
        cache: the RelayCache that the forward reads and writes.
        owner: who opened the frame: the model's handle.
        configs: the configs whose attention implementation is switched meanwhile.
        outer: the frame around this one, if forwards nest.
        backend: what is to compute attention, as configured.
        own_mask: `[B, S]` bool, own columns that may be attended to, or None when only left padding is masked.
        parts: gives a layer's keys and values of whole rows, to attention code that is the model's own.
        decoding: what makes it a static decode step, or None.
        capture: where layers leave K and V as their attention sees them, if the cache stores something else; or None.
        causal: the model made a plain causal mask in this forward.
        windows: the other masks handed out, by storage, with their sliding window (tokens, infinitely many for a
            causal one), or None for a pattern that attention can't follow.
        preparing: masks are made for the decode steps to come: causal ones are handed out too.
        hits: the layers whose attention was served.
        updates: the layers whose keys and values were stored.
        plans: what all layers with as many queries share, built by the first one.
        backends: what computed it.
        attends_stored: so far attention took keys and values just as the cache stores them.
        names_layers: so far every module named the cache layer that it attends to.
        rechosen: the user has chosen another attention implementation meanwhile.
    """

    cache: RelayCache
    owner: object
    configs: Sequence[PreTrainedConfig]
    outer: ForwardContext | None
    parts: Callable[[RelayLayer], tuple[Tensor, Tensor]]
    backend: str = "auto"
    own_mask: Tensor | None = None
    decoding: StaticStep | None = None
    capture: dict[int, tuple[Tensor, Tensor]] | None = None
    causal: bool = False
    windows: dict[int, tuple[Tensor, float | None]] = field(default_factory=dict)
    preparing: bool = False
    hits: set[int] = field(default_factory=set)
    updates: set[int] = field(default_factory=set)
    plans: dict[int, Plan] = field(default_factory=dict)
    backends: set[str] = field(default_factory=set)
    attends_stored: bool = True
    names_layers: bool = True
    rechosen: bool = False
    _sources: dict[tuple[int, torch.Size], tuple[int, Tensor]] = field(default_factory=dict)
    _pending: set[int] = field(default_factory=set)

    def saw_update(self, layer_idx: int, keys: Tensor) -> None:
        """Note that a layer stored keys, and was handed `keys` for attention."""
        self.updates.add(layer_idx)
        self._sources[keys.data_ptr(), keys.shape] = layer_idx, keys  # held, so that no other comes to lie there
        self._pending.add(layer_idx)

    def source(self, key: Tensor, layer_idx: int | None) -> int | None:
        """The layer whose keys and values a layer attends to: another one's, where it was handed those.

        `layer_idx` where `key` is none that a layer was handed.
        """
        found = self._sources.get((key.data_ptr(), key.shape))
        return layer_idx if found is None else found[0]

    def takes(self, layer_idx: int) -> bool:
        """Whether attention comes for the first time for what a layer was given."""
        first = layer_idx in self._pending
        self._pending.discard(layer_idx)
        return first


active_frame: ContextVar[ForwardContext | None] = ContextVar("relay_hf_active_frame", default=None)
