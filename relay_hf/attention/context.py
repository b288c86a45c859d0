"""The context of a relayed forward while it runs: its settings, and what was observed so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cache_utils import RelayCache, RelayLayer
from ..cache_utils.active import ActiveForward, active_forward
from ..errors import UnfitModelError
from ..kernels.plan import Plan
from ..model import linears
from ..model.attention_choice import deselect, select
from ..model.linears import Linears
from .mask_registry import MaskRegistry
from .split_tensor import Columns, SplitTensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from .static_step import StaticStep

Capture = dict[int, tuple[Tensor, Tensor]]  # K and V, by layer


@dataclass(frozen=True, eq=False)
class ForwardSettings:
    """The settings of a relayed forward, known when it begins.

    Attributes:
        cache: the RelayCache that the forward reads and writes.
        model: the patched model that runs.
        configs: the configurations whose attention implementation is switched while it runs.
        backend: the backend of attention that the options name.
        own_mask: `[B, S]` bool, own columns that may be attended to; None when only left padding is masked.
        static_step: the static decode step that the forward is, or None.
        capture: see `ForwardListener.capture`.
        inputs: the forward's arguments by name, as its caller gave them.
        may_rerun: see `ForwardListener.may_rerun`.
        linears: the linear layers that oneDNN computes while it runs.
    """

    cache: RelayCache
    model: PreTrainedModel
    configs: Sequence[PreTrainedConfig]
    backend: str = "auto"
    own_mask: Tensor | None = None
    static_step: StaticStep | None = None
    capture: Capture | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    may_rerun: bool = False
    linears: Linears = field(default_factory=Linears)


@dataclass(eq=False)
class Observations:
    """Observations of a forward while it ran.

    Attributes:
        attended: the layers whose attention was computed here.
        updated: the layers whose keys and values were handed to the cache.
        backends: the backends that computed attention.
        attends_stored: so far attention took keys and values just as the cache stores them.
        names_layers: so far every module named the cache layer that it attends to.
        rechosen: the user has chosen another attention implementation while the forward ran.
        missed: the first error of attention in a forward that may run again, and so goes on with zeros for now.
    """

    attended: set[int] = field(default_factory=set)
    updated: set[int] = field(default_factory=set)
    backends: set[str] = field(default_factory=set)
    attends_stored: bool = True
    names_layers: bool = True
    rechosen: bool = False
    missed: UnfitModelError | None = None
    _sources: dict[tuple[int, torch.Size], tuple[int, Tensor]] = field(default_factory=dict)
    _pending: set[int] = field(default_factory=set)

    def saw_update(self, layer_idx: int, keys: Tensor) -> None:
        """Note that a layer's keys are known, and that its attention is handed `keys`."""
        self.updated.add(layer_idx)
        self._sources[keys.data_ptr(), keys.shape] = layer_idx, keys  # held, so that no other tensor gets its address
        self._pending.add(layer_idx)

    def source(self, key: Tensor, layer_idx: int | None) -> int | None:
        """The layer whose keys a module attends to: the layer that was handed them, or `layer_idx` if none was."""
        found = self._sources.get((key.data_ptr(), key.shape))
        return layer_idx if found is None else found[0]

    def takes(self, layer_idx: int) -> bool:
        """Whether a layer's attention reads the keys that it was handed for the first time."""
        first = layer_idx in self._pending
        self._pending.discard(layer_idx)
        return first


@dataclass(eq=False)
class ForwardContext:
    """A forward that runs with a RelayCache.

    Attributes:
        settings: the settings of the forward.
        outer: the forward around this one, if forwards nest.
        masks: the masks that it has handed to the model.
        plans: the plan that all layers with one number of queries share, by that number; the first layer makes it.
        seen: the observations so far.
    """

    settings: ForwardSettings
    outer: ActiveForward | None
    masks: MaskRegistry = field(default_factory=MaskRegistry)
    plans: dict[int, Plan] = field(default_factory=dict)
    seen: Observations = field(default_factory=Observations)
    _columns: Columns | None = None

    @property
    def cache(self) -> RelayCache:
        """The RelayCache that the forward reads and writes."""
        return self.settings.cache

    @property
    def stores_late(self) -> bool:
        """Whether attention stores keys and values, instead of the cache's update: so in a static decode step."""
        return self.settings.static_step is not None

    def saw_update(self, layer_idx: int, keys: Tensor) -> None:
        """Note that a layer's keys are known, and that its attention is handed `keys`."""
        self.seen.saw_update(layer_idx, keys)

    def whole_rows(self, layer: RelayLayer) -> tuple[Tensor, Tensor]:
        """Keys and values of whole rows, which hold the shared part once, for attention code that is a model's own."""
        rows = self.cache.rows
        keys, values = layer.own()
        if len(layer.shared) != 1 or layer.shared[0].segment.rows is not None:
            return layer.joined(0), layer.joined(1)
        (shared_length,) = rows.shared_lengths  # models that need this share one prefix among all rows, or none
        # One object for all layers: it has the masks that earlier layers split.
        self._columns = columns = self._columns or Columns(len(keys), rows.offset, shared_length, rows.own_start)
        shared = [part[None] for part in layer.shared[0].stored]
        return SplitTensor(shared[0], keys, 2, columns), SplitTensor(shared[1], values, 2, columns)


def active_context() -> ForwardContext | None:
    """The forward that runs in this thread with a RelayCache and our attention, or None."""
    found = active_forward.get()
    return found if isinstance(found, ForwardContext) else None


def open_context(settings: ForwardSettings) -> ForwardContext:
    """Enter a relayed forward: the configurations name our attention, and every layer finds the context."""
    step = settings.static_step
    context = ForwardContext(settings, active_forward.get())
    if step is not None:
        context.plans, context.masks = {1: step.plan}, step.masks.copy()
    active_forward.set(context)  # first, so that `close_context` undoes the rest wherever an interrupt comes
    settings.cache.in_static_step = step is not None
    select(settings.configs, context)
    linears.select(settings.linears, context)
    return context


def close_context(context: ForwardContext) -> None:
    """Leave a relayed forward, and any inside it that an interrupt left open."""
    inner = active_context()
    while inner is not None:
        linears.deselect(inner.settings.linears, inner)
        deselect(inner.settings.configs, inner)
        inner.cache.in_static_step = False
        active_forward.set(inner.outer)
        if inner is context:
            return
        inner = active_context()
