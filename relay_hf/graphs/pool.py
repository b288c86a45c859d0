"""The pool of CUDA graphs that a model keeps for later calls, and the hook by which its calls use them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..cache_utils import RelayCache
from ..config import RelayConfig
from ..model.compiling import CALL_PATH
from ..model.device import ComputeContext
from ..model.fingerprint import keeping_refusal, structure
from . import capture
from .active import active_runner
from .decode_graph import DecodeGraph, signature

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST = 8
# The share of the device's memory that graphs may take between calls.
_SHARE = 0.1
# Steps that must be left for a capture to pay. It costs the host's time of about three steps: one that is recorded, one
# that is captured, and the making of the graph (0.13 s in all for 32 layers). Each replay saves most of one step.
_PAYS = 12


class GraphPool:
    """Captured decode steps of one model.

    While a generate() runs, calls of the model come here first, as calls of a compiled model come to torch.compile.
    So a replay runs no hooks and no forward.

    Args:
        model: the model.
        config: the options in force.

    Attributes:
        epoch: how often the pool was cleared. A graph of an earlier epoch is dropped when a call gives it back.
    """

    def __init__(self, model: PreTrainedModel, config: RelayConfig) -> None:
        self._model, self._config = model, config
        self._lock = threading.RLock()
        self._kept: list[DecodeGraph] = []  # the least recently used first
        self._refused: dict[Hashable, str] = {}
        self._open = 0
        # Whether the model's own `__dict__` holds None under that name: a user undoes `model.compile()` in this way.
        self._reset = False
        self.epoch = 0

    def configure(self, config: RelayConfig) -> None:
        """Take other options, and drop all graphs that were captured under the old ones."""
        self._config = config
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept between calls."""
        with self._lock:
            return sum(graph.nbytes for graph in self._kept)

    @property
    def least_steps(self) -> int:
        """Decode steps that must follow for a capture."""
        return 1 if self._config.cuda_graphs is True else _PAYS

    def expected(self, new: int, where: torch.device) -> bool:
        """Whether most steps of a call for `new` tokens would be replays, as far as the device and options go."""
        usable = self._config.cuda_graphs is not False and capture.supports(where)
        return usable and new > self.least_steps

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    def clear(self) -> None:
        """Drop all graphs."""
        with self._lock:
            self.epoch += 1
            self._kept.clear()
            self._refused.clear()

    @contextmanager
    def in_the_way(self) -> Iterator[bool]:
        """Within it calls of the model come here first, if a graph or a compiled step may be used at all.

        Yields whether a graph may be.
        """
        model = self._model
        graphs = self._config.cuda_graphs is not False and capture.supports(model.device)
        used = graphs or (self._config.compile is not False and model.device.type == "cpu")
        with self._lock:
            used = used and (self._open > 0 or model.__dict__.get(CALL_PATH) is None)
            if used:
                if not self._open:
                    self._reset = CALL_PATH in model.__dict__
                self._open += 1
                model.__dict__[CALL_PATH] = self._call_model
        try:
            with capture.generating():
                yield used and graphs
        finally:
            if used:
                with self._lock:
                    self._open -= 1
                    if not self._open:
                        if self._reset:
                            model.__dict__[CALL_PATH] = None
                        else:
                            model.__dict__.pop(CALL_PATH, None)

    def refusal(self, cache: RelayCache, modules: Sequence[nn.Module], own_loop: bool) -> str | None:
        """Why no decode step of a call is to be a graph, or None."""
        model = self._model
        if self._config.cuda_graphs is False:
            return "cuda_graphs=False"
        if not capture.supports(model.device):
            self.clear()  # the model may have been on a device that supports graphs before
            return f"there are no CUDA graphs on {model.device.type}"
        if model.__dict__.get(CALL_PATH) != self._call_model:
            return "the model is compiled"
        if any("forward" in module.__dict__ for module in modules):
            return "a module's forward was replaced"
        if own_loop:
            return "the decoding loop is the caller's"
        if cache.state_layers or cache.rows.whole_rows:
            return "the model has recurrent layers or attention code of its own"
        if cache.rows.holes is not None:
            return "the mask has holes"
        if torch.is_autocast_enabled(model.device.type):
            return "autocast is on"
        return None

    def key(self, modules: Sequence[nn.Module], cache: RelayCache, inputs: Hashable) -> tuple[Hashable, Hashable]:
        """The key that two calls must share to use one graph: the addresses of weights, and all else."""
        rows, layers = cache.rows, cache.kv_layers
        shapes = tuple(
            (index, *((len(t), t.shape[1], t.shape[3], t.dtype) for t in layer.own_tensors()))
            for index, layer in layers.items()
        )
        places, state = structure(modules)
        context = (ComputeContext.of(self._model), self._config.backend, torch.is_inference_mode_enabled())
        return (tuple(places), (inputs, shapes, rows.own_start is None, context, tuple(state)))

    def refuse(self, modules: Sequence[nn.Module], cache: RelayCache, inputs: Mapping[str, Any], why: str) -> None:
        """Remember that such steps can't be captured, because each attempt costs the host's time of some steps."""
        with self._lock:
            if len(self._refused) >= _MOST:
                self._refused.clear()
            self._refused[self.key(modules, cache, signature(inputs))] = why

    def refused(self, modules: Sequence[nn.Module], cache: RelayCache, inputs: Mapping[str, Any]) -> str | None:
        """Why an earlier call could not capture such steps, or None."""
        with self._lock:
            return self._refused.get(self.key(modules, cache, signature(inputs))) if self._refused else None

    def find(self, modules: Sequence[nn.Module], cache: RelayCache, steps: int, inputs: Hashable) -> DecodeGraph | None:
        """Take out a kept graph for `steps` of a call, and move the call's rows into its buffers; None if none fits."""
        with self._lock:
            if not self._kept:
                return None
            key = self.key(modules, cache, inputs)
            # A graph of weights that no longer exist is never used again.
            self._kept = [graph for graph in self._kept if graph.key[0] == key[0]]
            own = max(layer.own_length for layer in cache.kv_layers.values())
            for graph in sorted(self._kept, key=lambda graph: graph.capacity):
                if graph.key != key or graph.capacity < own + steps:
                    continue
                place = self._kept.index(graph)
                del self._kept[place]  # first, because an interrupt may leave a call's rows in its buffers
                if graph.take_up(cache):
                    return graph
                self._kept.insert(place, graph)
        return None

    def give_back(self, graph: DecodeGraph, modules: Sequence[nn.Module]) -> None:
        """Keep a graph after its call, if there is room and the model is one whose prefixes may be kept too."""
        budget = self._budget()
        if keeping_refusal(self._model, modules) is not None or graph.nbytes > budget:
            return
        with self._lock:
            if graph.epoch == self.epoch:
                self._kept.append(graph)
            while len(self._kept) > _MOST or sum(each.nbytes for each in self._kept) > budget:
                self._kept.pop(0)

    def _budget(self) -> int:
        where = self._model.device
        if where.type != "cuda":
            return 2**30
        return int(_SHARE * torch.cuda.get_device_properties(where).total_memory)

    def _call_model(self, *args: Any, **kwargs: Any) -> Any:
        """The replacement of the model's `__call__`."""
        forward: Callable[..., Any] = self._model._call_impl
        runner = active_runner.get()
        if runner is None or runner.pool is not self:
            return forward(*args, **kwargs)
        return runner.run(forward, args, kwargs)
