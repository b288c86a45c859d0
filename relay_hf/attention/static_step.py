"""Decode steps with fixed shapes: from the first one of a call on, no tensor of a step moves or changes shape.

A decode step writes its own keys and values in place, into buffers with room for the tokens that the call may still
make. Attention gets whole buffers, and reads from device memory how much of them is filled. No mask is built, and
nothing waits for the device. The model's other operations have the same shapes in every step anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels.plan import Plan
from .mask_registry import MaskRegistry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..cache_utils import RelayCache, RelayLayer


class StaticStep:
    """The tensors and the plan that all decode steps of a call share.

    Args:
        cache: the cache, prefilled.
        layer: one of its layers; all of them have room for another column.

    Attributes:
        capacity: own columns that fit into the buffers.
        position: `[1]` int64, the own column of the step's token.
        own_length: `[B]` int64, own columns of a row, the step's token included.
        plan: the geometry of the step.
        given_masks: the prepared masks that the model gets, or None if it makes masks itself.
        masks: the registry of the prepared masks.
    """

    def __init__(self, cache: RelayCache, layer: RelayLayer) -> None:
        keys, rows = layer.own_tensors()[0], cache.rows
        self._cache: RelayCache | None = cache
        self._layer: RelayLayer | None = layer
        self._changes = rows.changes
        self.given_masks: Any = None
        self.masks = MaskRegistry()
        batch = len(keys)
        self.capacity = layer.capacity
        self._columns = layer.own_length
        self._shared_length, self._own_start, self._holes = rows.shared_length, rows.own_start, rows.holes
        # One tensor, so that a step moves all counters by one operation.
        self._counters = torch.full((batch + 1,), self._columns, dtype=torch.int64, device=keys.device)
        self.position, self.own_length = self._counters[:1], self._counters[1:]
        self.own_length += 1
        self._mask = rows.holes
        if self._mask is not None:
            self._mask = nn.functional.pad(self._mask, (0, self.capacity - self._mask.shape[1]), value=True)
            self._mask = self._mask.to(keys.device)
        self.plan = Plan(
            batch,
            1,
            self.capacity,
            shared_length=rows.shared_length,
            own_start=rows.own_start,
            own_length=self.own_length,
            own_mask=self._mask,
        )

    def leads_on(self, cache: RelayCache, batch: int) -> bool:
        """Whether `cache` is as this step has left it, in the same memory, with room for another token of each row.

        The contents of `own_start` and `holes` may have changed; `advance` takes over such a change.
        """
        layer, rows = self._layer, cache.rows
        return (
            cache is self._cache
            and layer is not None
            and layer.own_length == self._columns + 1
            and layer.capacity == self.capacity
            and layer.has_room
            and batch == len(self.own_length)
            and rows.own_start is self._own_start
            and rows.holes is self._holes
            and rows.shared_length == self._shared_length
        )

    def take_up(self, cache: RelayCache) -> None:
        """Go on with `cache`, whose layers have moved their rows into the buffers of the cache before."""
        rows, layer = cache.rows, next(layer for layer in cache.kv_layers.values() if layer.own_tensors())
        self._cache, self._layer, self._columns = cache, layer, layer.own_length - 1
        self._changes, self._shared_length, self._holes = rows.changes, rows.shared_length, rows.holes
        self._counters.fill_(self._columns)
        self.own_length += 1
        if self._own_start is not None and rows.own_start is not None and rows.own_start is not self._own_start:
            self._own_start.copy_(rows.own_start)
        rows.own_start = self._own_start

    def let_go(self) -> None:
        """Drop the reference to the cache."""
        self._cache = self._layer = None

    def replayed(self) -> None:
        """Note that a replay of a CUDA graph has run, which moved the counters to the next step."""
        self._columns += 1

    def advance(self) -> None:
        """Move to the next step."""
        self._counters += 1
        self._columns += 1
        self.plan.advance()
        rows = None if self._cache is None else self._cache.rows
        if rows is not None and self._changes != rows.changes:
            self._changes = rows.changes
            if self._mask is not None and self._holes is not None:
                self._mask[:, : self._holes.shape[1]] = self._holes
            self.plan.change_rows()


def static_step(
    cache: RelayCache, before: StaticStep | None, ids: Tensor | None, inputs: Mapping[str, Any]
) -> StaticStep | None:
    """The coming forward as a static decode step; None if it can't be one.

    Args:
        cache: the cache of a generate() call whose masks are known: the prompt's, with ones behind it.
        before: the static step before, or None.
        ids: `[B, T]`, the tokens of the forward.
        inputs: the forward's arguments.
    """
    if ids is None or ids.dim() != 2 or ids.shape[1] != 1 or not cache.attends_stored:
        return None
    if inputs.get("position_ids") is None:  # the model would count them from the mask, which it does not get
        return None
    if before is not None and before.leads_on(cache, len(ids)):
        before.advance()
        return before
    layers = [layer for layer in cache.kv_layers.values() if layer.own_tensors()]
    for layer in layers:
        layer.make_room(layer.own_length + 1)
    alike = len({(layer.own_length, layer.capacity) for layer in layers}) == 1
    return StaticStep(cache, layers[0]) if alike and len(ids) == len(layers[0].own_tensors()[0]) else None
