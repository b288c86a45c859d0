"""Runs the decode steps of one call: the first is recorded, the second captured, and the others are replays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ..attention.listener import ForwardListener
from ..attention.static_step import StaticStep
from ..cache_utils import RelayCache, RelayLayer
from ..errors import RelayError
from ..model.device import is_out_of_memory
from ..model.fingerprint import adapter_state
from ..model.upstream.names import given_caches
from . import capture
from .decode_graph import (
    NOT_READ,
    DecodeGraph,
    DifferentStepError,
    RowUsers,
    StepTensors,
    UnfitStepError,
    rows_of,
    segments_of,
    signature,
    tensors_of,
    unfit_input,
)
from .pool import GraphPool
from .recorder import Operations

logger = logging.getLogger("relay_hf")

_TRIED_AGAIN = 4  # steps recorded in one call at most: a new one is needed when buffers are outgrown, or rows change


class GraphRunner:
    """Runs the forwards of a call after its prefill.

    Args:
        pool: the model's graphs.
        call: the call that runs the steps.
        modules: all modules of the model.
        cache: the call's cache, prefilled.
        steps: decode steps that the call may make.
        refused: why none of them may be a graph, or None.
        ahead: the loop feeds the very tokens that it gives its stopping criteria.

    Attributes:
        replayed: number of steps that were replays.
        capturing: a step is being captured: its tokens are the graph's input, and are not fed by the loop.
        why_not: why no later step is a replay, or None.
        nbytes: bytes of the graphs that the call used.
    """

    def __init__(
        self,
        pool: GraphPool,
        call: ForwardListener,
        modules: Sequence[nn.Module],
        cache: RelayCache,
        steps: int,
        refused: str | None,
        ahead: bool = False,
    ) -> None:
        self.pool, self._call, self._modules, self._left = pool, call, modules, steps
        self._cache = cache
        self._ahead = ahead
        self.replayed, self.nbytes = 0, 0
        self.capturing = False
        self.why_not = refused
        self._graph: DecodeGraph | None = None
        self._recorded: tuple[Operations, Hashable, RowUsers] | None = None
        self._noting: Operations | None = None
        self._recordings = self._differed = self._lacked = 0
        self._adapters = adapter_state(modules)
        self._astray = False
        self._waited = ""

    @property
    def reason(self) -> str:
        """Why steps were not replays; empty if they were."""
        return self.why_not or self._waited

    def run(self, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """`forward(*args, **kwargs)`, or a replay of a graph that computes the same."""
        if self.why_not is not None or not self.is_step(args, kwargs):
            return forward(*args, **kwargs)
        self._left -= 1
        self._cache.take_over()
        if self._cache.is_joined:
            self._close()
            self._refuse("keys or values of the cache were changed within the call")
            return forward(**kwargs)
        if self._adapters and adapter_state(self._modules) != self._adapters:
            self._close()
            self._refuse("adapters changed within the call")
            return forward(**kwargs)
        graph = self._graph
        if graph is not None and not graph.leads_on(self._cache, kwargs):
            self._close()
            graph = None
        if graph is None and self._recorded is None:
            graph = self._graph = self.pool.find(self._modules, self._cache, self._left + 1, signature(kwargs))
        if graph is not None:
            return self._replay(graph, kwargs)
        if self._recorded is not None:
            return self._capture(forward, kwargs, *self._recorded)
        return self._record(forward, kwargs)

    def prepare(self, step: StaticStep) -> None:
        """Give the kernels of a new static step tables to look everything up in, if the step is to be recorded."""
        if self._noting is None:
            return
        from ..kernels.triton import DecodeTables

        layers = [layer.buffers for layer in self._cache.kv_layers.values() if layer.own_tensors()]
        if len({tensor.device for pair in layers for tensor in pair}) > 1:
            self._refuse("the model lies on several devices")
            return
        try:
            step.plan.tables = DecodeTables(layers, segments_of(self._cache))
        except ValueError as error:
            self._refuse(str(error))

    def run_ahead(self, input_ids: Tensor) -> None:
        """Start the step that the loop will ask for next, with the last tokens of `input_ids` `[B, n]`."""
        if self._graph is not None and self._ahead and self._left > 0 and not self._cache.rows.shown:
            self._graph.run_ahead(input_ids[:, -1:])

    def check(self) -> None:
        """Raise if a step ran ahead with other tokens than the loop then fed."""
        if self._graph is not None:
            self._astray |= self._graph.ran_astray()
        if self._astray:
            raise RelayError(
                "the decoding loop fed other tokens or positions than it showed its stopping criteria, so a step was "
                "computed from the wrong ones. Use cuda_graphs=False for this call."
            )

    def entered(self) -> None:
        """Note that the forward begins. Operations before it, such as making tables, are ours, and need not repeat."""
        if self._noting is not None:
            self._noting.noted.clear()

    def finish(self) -> None:
        """End the call and drop its cache. If others hold the cache or its layers, they get memory of their own."""
        layers = {index: ref(layer) for index, layer in self._cache.kv_layers.items()}
        self._cache = None  # type: ignore[assignment]
        graph, self._graph, self._recorded = self._graph, None, None
        if graph is not None:
            graph.forget()
            held = {index: layer() for index, layer in layers.items()}
            self._give_back(graph, {index: layer for index, layer in held.items() if layer is not None})

    def _close(self) -> None:
        """Give the graph back in the middle of a call."""
        graph, self._graph, self._recorded = self._graph, None, None
        if graph is not None:
            self._give_back(graph, self._cache.kv_layers)

    def _give_back(self, graph: DecodeGraph, layers: Mapping[int, RelayLayer]) -> None:
        graph.leave(layers)
        if self._call.static_step is graph.static_step:
            self._call.static_step = None
        self._astray |= graph.ran_astray()
        self.pool.give_back(graph, self._modules)

    def is_step(self, args: tuple, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call of the model with these arguments is a decode step of the call."""
        ids = kwargs.get("input_ids")
        mine = self._cache in given_caches(kwargs)
        return not args and mine and isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[1] == 1

    def _record(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run a step and record its operations. Its kernels look everything up in tables."""
        if self._left < self.pool.least_steps:
            if not self.replayed:
                self.why_not = "too few steps may follow for a capture to pay"
            return forward(**kwargs)
        self._recordings += 1
        if self._recordings > _TRIED_AGAIN:
            self._refuse("the call has changed its rows or outgrown its buffers too often")
            return forward(**kwargs)
        name = unfit_input(kwargs)
        why = None if name is None else f"the model is given {name!r}, a {type(kwargs[name]).__name__}"
        if why := why or self.pool.refused(self._modules, self._cache, kwargs):
            self._refuse(why)
            return forward(**kwargs)
        outputs, operations = self._noted(forward, kwargs)
        step = self._call.static_step
        if step is None:
            self._refuse("the steps are not static: they read masks, or attention takes what the cache does not store")
        elif step.plan.tables is None or not step.plan.tables.in_use:
            self._refuse(self.why_not or "the kernels do not compute attention")
        else:
            self._recorded = operations, signature(kwargs), rows_of(self._cache)
        return outputs

    def _capture(
        self,
        forward: Callable[..., Any],
        kwargs: dict[str, Any],
        recorded: Operations,
        inputs_were: Hashable,
        rows_were: RowUsers,
    ) -> Any:
        """Capture a step as a graph, if it runs the same operations as the step before."""
        self._recorded = None
        step, cache = self._call.static_step, self._cache
        if step is None or not step.leads_on(cache, len(kwargs["input_ids"])):
            return self._record(forward, kwargs)
        if inputs_were != signature(kwargs) or rows_were.users != rows_of(cache).users:
            self._call.static_step = None  # its tables are of the rows before
            return self._record(forward, kwargs)
        before = {index: layer.own_length for index, layer in cache.kv_layers.items()}
        self.capturing = True
        try:
            with capture.one_capture:
                graph = self._captured(forward, kwargs, recorded, step) if capture.may_capture() else None
        except Exception as error:
            lacking, differs = is_out_of_memory(error), isinstance(error, DifferentStepError)
            why = str(error) if isinstance(error, UnfitStepError) else f"{type(error).__name__}: {error}"
        else:
            self.capturing = False
            if graph is None:
                self._waited = "other calls of generate() were running, beside which PyTorch before 2.13 can't capture"
                self._recorded = recorded, inputs_were, rows_were  # perhaps the next step
                return forward(**kwargs)
            self._graph = graph
            self.nbytes += graph.nbytes
            self._note(kwargs)
            return graph.launch(cache)
        self.capturing = False
        # Only here, because now the error's frames are gone, and the memory that the capture has allocated is free.
        for index, length in before.items():
            cache.kv_layers[index].own_length = length
        self._call.static_step = None
        if lacking and not self._lacked:
            self._lacked += 1
            capture.give_memory_back(kwargs["input_ids"].device)
            return self._record(forward, kwargs)
        if differs and not self._differed:
            self._differed += 1  # a first step may run operations of its own; a second difference is no chance
            return self._record(forward, kwargs)
        self._refuse(why)
        if not lacking:  # later there may be enough memory
            self.pool.refuse(self._modules, cache, kwargs, why)
        return forward(**kwargs)

    def _captured(
        self, forward: Callable[..., Any], kwargs: dict[str, Any], recorded: Operations, step: StaticStep
    ) -> DecodeGraph:
        cache, where = self._cache, kwargs["input_ids"].device
        inputs = {name: _kept(value) for name, value in kwargs.items() if name not in NOT_READ}
        device_graph = capture.new_graph(where)
        held = {index: layer.own_length for index, layer in cache.kv_layers.items() if layer.own_tensors()}
        allocated = _held(where)

        def run() -> Any:
            outputs, operations = self._noted(forward, {**kwargs, **inputs})
            if difference := recorded.differs(operations):
                raise DifferentStepError(f"two steps of the model differ: {difference[:300]}")
            return tensors_of(outputs, cache), type(outputs)

        outputs, output_type = device_graph.capture(run)
        if any(cache.kv_layers[index].own_length != length + 1 for index, length in held.items()):
            raise UnfitStepError("a step does not add a token to every layer")
        buffers = {index: cache.kv_layers[index].buffers for index in held}
        nbytes = _held(where) - allocated
        nbytes += sum(tensor.numel() * tensor.element_size() for pair in buffers.values() for tensor in pair)
        key = self.pool.key(self._modules, cache, signature(kwargs))
        epoch = self.pool.epoch
        tensors = StepTensors(inputs, outputs, output_type)
        graph = DecodeGraph(key, device_graph, step, buffers, tensors, nbytes, epoch)
        graph.lend(cache)
        return graph

    def _noted(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Any, Operations]:
        try:
            with Operations() as self._noting:
                outputs = forward(**kwargs)
            return outputs, self._noting
        finally:
            self._noting = None

    def _replay(self, graph: DecodeGraph, kwargs: dict[str, Any]) -> Any:
        self._call.static_step = graph.static_step
        self._call.computed_by("triton")
        self._note(kwargs)
        return graph.replay(self._cache, kwargs)

    def _note(self, kwargs: Mapping[str, Any]) -> None:
        self.replayed += 1
        self._call.tokens(self._cache, kwargs["input_ids"])

    def _refuse(self, why: str) -> None:
        self.why_not = why
        if self._call.static_step is not None:
            self._call.static_step.plan.tables = None  # from now on they are not kept up to date
        logger.info("relay_hf: decode steps of this call are not replayed as a CUDA graph: %s", why)


def _kept(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _held(where: torch.device) -> int:
    """Bytes that PyTorch holds on a device. A graph's own pool counts whole, even if nothing in it is in use."""
    return torch.cuda.memory_reserved(where) if where.type == "cuda" else 0
