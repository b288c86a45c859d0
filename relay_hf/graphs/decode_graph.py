"""A captured decode step, with the memory that it reads and writes."""

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

# Inputs that a static step replaces: they are not compared from call to call.
NOT_READ = frozenset({"attention_mask", *CACHE_NAMES})


class UnfitStepError(Exception):
    """A step that can't be replayed; the message says why."""


class DifferentStepError(UnfitStepError):
    """A step that runs other operations than the step before."""


def unfit_input(inputs: Mapping[str, Any]) -> str | None:
    """The name of an argument that is neither a tensor nor a plain value, or None."""
    fit = (Tensor, bool, int, float, str, type(None))
    return next((name for name, value in inputs.items() if name not in NOT_READ and not isinstance(value, fit)), None)


def signature(inputs: Mapping[str, Any]) -> Hashable:
    """The part of the inputs that may not change from step to step: shapes and dtypes of tensors, and other values."""
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
    """The rows of a cache, in a form that can be compared: how often they changed, and each layer's segments."""

    changes: int = -1
    users: tuple[tuple[LayerKV, ...], ...] = ()


def rows_of(cache: RelayCache) -> RowUsers:
    """The rows of a cache. A segment that other rows use is another object."""
    return RowUsers(cache.rows.changes, tuple(tuple(layer.shared) for layer in cache.kv_layers.values()))


class StepTensors(NamedTuple):
    """The tensors that a captured forward reads and writes.

    Attributes:
        inputs: its arguments by name; a replay reads those that are tensors.
        outputs: the tensors that it returned, by name, to which a replay writes; None instead of the cache.
        output_type: the class of the object that it returned.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Tensor | None]
    output_type: type[ModelOutput]


@dataclass(eq=False)
class DecodeGraph:
    """One captured forward of the model, of one token a row.

    Attributes:
        key: a call must have the same key to use the graph (`GraphPool.key`).
        device_graph: launches the kernels.
        static_step: position, lengths and tables that the kernels read.
        buffers: own keys and values of each layer, by the layer's number.
        tensors: the forward's arguments, and the tensors that it returned.
        nbytes: bytes that it keeps: own buffers, and the forward's working memory.
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
        """Serve `cache`, whose rows are in the graph's buffers already."""
        self._cache, self._rows = cache, rows_of(cache)

    def take_up(self, cache: RelayCache) -> bool:
        """Serve `cache` from now on: its rows move into the graph's buffers. False where its segments do not fit."""
        if self._done is not None:  # wait for another call's last replay, on any stream of this device
            self._done.wait(torch.cuda.current_stream(self.static_step.position.device))
        if not self.static_step.plan.take(segments_of(cache)):
            return False
        for index, buffers in self.buffers.items():
            cache.kv_layers[index].move_into(buffers)
        self.static_step.take_up(cache)
        self.lend(cache)
        return True

    def leave(self, layers: Mapping[int, RelayLayer]) -> None:
        """Serve no cache any more. `layers`: layers of the cache that live on; their rows get memory of their own."""
        if self._ahead:  # nobody asked for this step, which wrote behind the last token of each row
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
        """Drop all references to the cache. Then any reference that is left is somebody else's."""
        self._cache, self._rows = None, RowUsers()
        self.static_step.let_go()

    def leads_on(self, cache: RelayCache, inputs: Mapping[str, Any]) -> bool:
        """Whether the coming forward of `cache` with `inputs` is the step after the one that was last replayed."""
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
        """Launch the step after the one that was last replayed, with the next tokens, `tokens` `[B, 1]`."""
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
        """Whether any step ran ahead with other inputs than the loop then gave. Waits for the device."""
        differs, self._differs = self._differs, None
        return differs is not None and bool(differs)

    def launch(self, cache: RelayCache) -> ModelOutput:
        """Launch it, and return copies of its outputs, because the next launch overwrites them."""
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
    """The outputs of a forward by name: tensors, and None instead of the cache.

    Raises:
        UnfitStepError: the forward returns something else.
    """
    if not isinstance(outputs, ModelOutput):
        raise UnfitStepError(f"the model returns a {type(outputs).__name__}")
    for name, value in outputs.items():
        if not isinstance(value, Tensor) and value is not cache:
            raise UnfitStepError(f"the model returns {name!r}, a {type(value).__name__}")
    return {name: value if isinstance(value, Tensor) else None for name, value in outputs.items()}
