"""A decode step that was captured, with the memory that it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..model.upstream.names import CACHE_NAMES

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ..attention.static_step import StaticStep
    from ..cache_utils import LayerKV, RelayCache, RelayLayer
    from ..kernels.segment import Segment
    from .capture import DeviceGraph

# What is in place of these in a static step is not what the caller gave.
NOT_READ = frozenset({"attention_mask", *CACHE_NAMES})


class UnfitStepError(Exception):
    """A step that can't be replayed; the message says why."""


class DifferentStepError(UnfitStepError):
    """A step that does something else than the one before."""


def unfit_input(inputs: Mapping[str, Any]) -> str | None:
    """The name of an argument that is neither a tensor nor a plain value, or None."""
    fit = (Tensor, bool, int, float, str, type(None))
    return next((name for name, value in inputs.items() if name not in NOT_READ and not isinstance(value, fit)), None)


def signature(inputs: Mapping[str, Any]) -> Hashable:
    """What a graph's inputs have in common from step to step: shapes and dtypes of tensors, and all that is none."""
    return tuple(
        (name, (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value)
        for name, value in inputs.items()
        if name not in NOT_READ
    )


def segments_of(cache: RelayCache) -> list[list[Segment]]:
    """The segments of each layer that holds keys and values, as the kernels take them."""
    layers = (layer for layer in cache.kv_layers.values() if layer.own_tensors())
    parts = ([part.segment for part in layer.shared] for layer in layers)
    return [[segment for segment in layer if segment.length and segment.rows != ()] for layer in parts]


class RowUsers(NamedTuple):
    """Which rows a cache holds: how often they were changed, and the segments that each layer has them use."""

    changes: int = -1
    users: tuple[tuple[LayerKV, ...], ...] = ()


def rows_of(cache: RelayCache) -> RowUsers:
    """The rows of a cache. A segment is another object once other rows use it."""
    return RowUsers(cache.rows.changes, tuple(tuple(layer.shared) for layer in cache.kv_layers.values()))


class StepTensors(NamedTuple):
    """What a captured forward reads and writes.

    Attributes:
        inputs: its arguments by name; what of them are tensors is read.
        outputs: the tensors that it returned, by name, which are written; None in the place of the cache.
        output_type: what holds them.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Tensor | None]
    output_type: type[ModelOutput]


@dataclass(eq=False)
class DecodeGraph:
    """One forward of the model, of one token a row.

    Attributes:
        key: what a call must have in common with the one that it was captured in (`GraphPool.key`).
        device_graph: what launches it.
        static_step: position, lengths and tables that it reads.
        buffers: own keys and values of each layer, by the layer's number.
        tensors: the forward's arguments, and what it returned.
        nbytes: bytes that it keeps: own buffers, and what the forward works in.
        epoch: `GraphPool.epoch` when it was captured.
    """

    key: tuple[Hashable, Hashable]
    device_graph: DeviceGraph
    static_step: StaticStep
    buffers: dict[int, tuple[Tensor, Tensor]]
    tensors: StepTensors
    nbytes: int = 0
    epoch: int = 0
    _cache: RelayCache | None = None
    _rows: RowUsers = field(default_factory=RowUsers)
    _ahead: bool = False
    _differs: Tensor | None = None
    _done: Any = None

    @property
    def capacity(self) -> int:
        """Own columns that fit."""
        return self.static_step.capacity

    def lend(self, cache: RelayCache) -> None:
        """Serve `cache`, which holds its rows in the graph's buffers."""
        self._cache, self._rows = cache, rows_of(cache)

    def take_up(self, cache: RelayCache) -> bool:
        """Serve `cache` from now on: its rows move into the graph's buffers. False where its segments do not fit."""
        if self._done is not None:  # for what another call launched last, on whatever stream of this device
            self._done.wait(torch.cuda.current_stream(self.static_step.position.device))
        if not self.static_step.plan.take(segments_of(cache)):
            return False
        for index, buffers in self.buffers.items():
            cache.kv_layers[index].move_into(buffers)
        self.static_step.take_up(cache)
        self.lend(cache)
        return True

    def leave(self, layers: Mapping[int, RelayLayer]) -> None:
        """Serve nobody. `layers`: those of what was served that live on: their rows get memory of their own."""
        if self._ahead:  # nobody has asked for this step. What it wrote lies behind the last token of each row.
            self._ahead = False
            self.device_graph.join()
        own_start = self.static_step.plan.own_start
        for index, layer in layers.items():
            if index in self.buffers and layer.holds(self.buffers[index]):
                layer.move_out()
            if own_start is not None and layer.rows.own_start is own_start:
                layer.rows.own_start = own_copy(own_start)
        self.forget()
        position = self.static_step.position
        if position.is_cuda:
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(position.device))

    def forget(self) -> None:
        """Hold on to no cache, so that it is seen who else does."""
        self._cache, self._rows = None, RowUsers()
        self.static_step.let_go()

    def leads_on(self, cache: RelayCache, inputs: Mapping[str, Any]) -> bool:
        """Whether the coming forward of `cache` with `inputs` is the next step of the one that was last replayed."""
        if self._cache is not cache or cache.rows.holes is not None:
            return False
        if any(not cache.kv_layers[index].holds(buffers) for index, buffers in self.buffers.items()):
            return False
        if not self.static_step.leads_on(cache, len(inputs["input_ids"])) or signature(inputs) != signature(
            self.tensors.inputs
        ):
            return False
        before, self._rows = self._rows, rows_of(cache)
        if self._ahead and before != self._rows:
            return False  # too late for a step that is under way
        return before.users == self._rows.users or self.static_step.plan.take(segments_of(cache))

    def replay(self, cache: RelayCache, inputs: Mapping[str, Any]) -> ModelOutput:
        """The step of `cache`'s rows with `inputs`."""
        for index in self.buffers:
            cache.kv_layers[index].own_length += 1
        self.static_step.replayed()
        given = [inputs[name] for name in self._given]
        if not self._ahead:
            torch._foreach_copy_([self.tensors.inputs[name] for name in self._given], given)
            return self.launch(cache)
        self._ahead = False
        for name, value in zip(self._given, given, strict=True):
            differs = (value != self.tensors.inputs[name]).any()
            self._differs = differs if self._differs is None else self._differs | differs
        self.device_graph.join()
        return self._outputs_of(cache)

    @property
    def _given(self) -> list[str]:
        return [name for name, value in self.tensors.inputs.items() if isinstance(value, Tensor)]

    def run_ahead(self, tokens: Tensor) -> None:
        """Launch the step after the one that was last replayed, with `tokens` `[B, 1]`: those that are to come next."""
        cache = self._cache
        if self._ahead or cache is None or set(self._given) != {"input_ids", "position_ids"}:
            return
        rows = rows_of(cache)
        if rows.users != self._rows.users:
            return
        if not all(cache.kv_layers[index].has_room for index in self.buffers):
            return
        self._rows = rows
        self.tensors.inputs["input_ids"].copy_(tokens)
        self.tensors.inputs["position_ids"] += 1
        self.device_graph.replay_beside()
        self._ahead = True

    def ran_astray(self) -> bool:
        """Whether any step ran ahead with other inputs than were then given. Waits for the device."""
        differs, self._differs = self._differs, None
        return differs is not None and bool(differs)

    def launch(self, cache: RelayCache) -> ModelOutput:
        """Launch it, and hand out copies of what it writes: the next launch writes there again."""
        self.device_graph.replay()
        return self._outputs_of(cache)

    def _outputs_of(self, cache: RelayCache) -> ModelOutput:
        outputs = {name: cache if value is None else value.clone() for name, value in self.tensors.outputs.items()}
        return self.tensors.output_type(**outputs)


def own_copy(tensor: Tensor) -> Tensor:
    """A copy that may be written to in and out of inference mode."""
    with torch.inference_mode(False):
        return torch.empty_like(tensor, requires_grad=False).copy_(tensor)


def tensors_of(outputs: Any, cache: RelayCache) -> dict[str, Tensor | None]:
    """What a forward returned by name: tensors, and None in the place of the cache.

    Raises:
        UnfitStepError: it returns something else.
    """
    if not isinstance(outputs, ModelOutput):
        raise UnfitStepError(f"the model returns a {type(outputs).__name__}")
    for name, value in outputs.items():
        if not isinstance(value, Tensor) and value is not cache:
            raise UnfitStepError(f"the model returns {name!r}, a {type(value).__name__}")
    return {name: value if isinstance(value, Tensor) else None for name, value in outputs.items()}
