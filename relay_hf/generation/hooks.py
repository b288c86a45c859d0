"""What `patch_model` puts on a model: methods in the place of the model's own, forward hooks, and their state."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..attention import interface
from ..attention.forward import enter, leave
from ..compiled import CompiledSteps
from ..config import RelayConfig
from ..errors import RelayError
from ..graphs import GraphPool
from ..model.device import device_of
from ..model.upstream.models import ENCODE, unencoded
from ..model.upstream.names import PREFILL
from ..model.view import ModelView
from ..prefix.store import PrefixStore
from ..reasons import Reason, Refusal
from ..report import RelayReport, RelayStats
from .call import DryCall, GenerateCall, current_call, running, stop_if_dry
from .eligible_models import standing_refusal
from .facts import CallArguments, CallFacts, PrefillInputs
from .findings import ModelFindings
from .generate_hook import generate
from .notices import tell_standing
from .prefill_hook import prefill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attributes that a copy or a pickle leaves out: stores start empty, and locks belong to one process.
_OF_THIS_ONE = frozenset({"_lock", "_open", "compiled", "graphs", "store"})
_DEFAULT_STORE_BYTES = 2**30

Call = TypeVar("Call", bound=GenerateCall)


class ModelHooks:
    """The methods that replace a model's, and the state that its calls share. `model.relay` is its face for users.

    Attributes:
        model: the patched model.
        config: the options in force.
        store: the prefixes that are kept between calls.
        graphs: decode steps that were captured as CUDA graphs.
        compiled: the compiled decode step.
        findings: results of the model's earlier calls.
        last: the report of the latest generate(), or None before the first.
        shadowed: the values of the model's own `__dict__` under these names before the patch, or None.
        handles: handles of the hooks on the model.
        retired: the model is not patched any more. What was put around its methods meanwhile may still call ours.
    """

    retired = False

    def __init__(self, model: PreTrainedModel, config: RelayConfig, shadowed: dict[str, Any]) -> None:
        self.model = model
        self.config = config
        self.findings = ModelFindings()
        self.last: RelayReport | None = None
        self.shadowed = shadowed
        self.handles: list[RemovableHandle] = []
        self._stats = RelayStats()
        self._begin()

    def _begin(self) -> None:
        """Set the attributes with which a new, a copied and an unpickled handle start."""
        self.store = PrefixStore(self._budget)
        self.graphs = GraphPool(self.model, self.config)
        self.compiled = CompiledSteps(self.model, self.config)
        self._open: set[GenerateCall] = set()
        self._lock = threading.Lock()

    def configure(self, config: RelayConfig) -> None:
        """Take other options. Prefixes stay, unless their budget changes, or what computes linear layers."""
        before, self.config = self.config, config
        self.findings.forget()
        # Keys and values that one of oneDNN and PyTorch has computed are not used beside the other's.
        if (before.max_store_bytes, before.linears) != (config.max_store_bytes, config.linears):
            self.store = PrefixStore(self._budget)
        self.graphs.configure(config)
        self.compiled.configure(config)
        self.announce()

    def standing_refusal(self) -> Refusal | None:
        """Why no call of the model is relayed as it is now, whatever the call; None if that is up to the call."""
        found = self.findings.refusal
        with suppress(Exception):  # a model that can't be looked at says so when it is called
            found = found or standing_refusal(ModelView.of(self.model))
        return found

    def announce(self) -> None:
        """Warn, once, if no call of the model will be relayed, unless the user wants none."""
        refused = None if self.config.policy == "off" else self.standing_refusal()
        if refused:
            tell_standing(self.model, self.findings, refused)

    def retire(self) -> None:
        """Relay no call from now on.

        Raises:
            RelayError: a call runs now, in this thread or another one.
        """
        with self._lock:
            if self._open:
                raise RelayError(
                    f"model can't be unpatched while it generates; {len(self._open)} of its calls run now, in this "
                    "thread or others. Let them end first, or turn relaying off for the calls to come with "
                    "patch_model(model, policy='off')."
                )
            self.config = RelayConfig(policy="off")
            self.retired = True

    def stats(self) -> RelayStats:
        """A copy of the totals since the model was patched."""
        with self._lock:
            return replace(self._stats, calls_by_code=dict(self._stats.calls_by_code))

    def clear(self) -> None:
        """Drop all kept prefixes, graphs and compiled steps, and forget what was learnt about the model."""
        self.store.clear()
        self.graphs.clear()
        self.compiled.clear()
        self.findings.forget()

    # -- what replaces the model's methods ---------------------------------------------------------------------------

    def stock(self, name: str) -> Callable[..., Any]:
        """The method below ours, as it is now: a tracer may have been put on the class, or taken off, since."""
        own: Callable[..., Any] | None = self.shadowed.get(name)  # None also for what an older pickle did not shadow
        if own is not None:
            return own
        kind = type(self.model)
        found = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
        bound: Callable[..., Any] = found.__get__(self.model, kind) if hasattr(found, "__get__") else found
        return bound

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's generate(), with a report."""
        stop_if_dry()
        stock = self.stock("generate")
        report: RelayReport | None = None
        try:
            with self.open_call(CallArguments.of(stock, args, kwargs)) as call:
                try:
                    return generate(call, stock, args, kwargs)
                finally:
                    report = call.report
        except BaseException as error:  # the first look at the model may raise too, before there is a call
            report = report or RelayReport.of(Reason.RAISED_IN_CALL.of(error=type(error).__name__))
            raise
        finally:
            if report is not None:
                self._count(report)

    def encode(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """How generate() encodes images, and the inputs of an encoder-decoder model; a dry call encodes nothing."""
        call = current_call()
        if isinstance(call, DryCall):
            return unencoded(self.model, inputs_tensor, model_kwargs)
        return self.stock(ENCODE)(inputs_tensor, model_kwargs, *args, **kwargs)

    def prefill(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], is_first_iteration: bool = True
    ) -> Any:
        """The model's `_prefill`, with the shared prefix found, prefilled once and held once."""
        call = current_call()
        asked = PrefillInputs(input_ids, generation_config, model_kwargs, is_first_iteration)
        if call is None or call.facts.view.model is not self.model:  # a decoding loop, started without generate()
            return self.stock(PREFILL)(*asked)
        if isinstance(call, DryCall):
            call.stop(asked)
        return prefill(call, self.stock(PREFILL), asked)

    def train(self, mode: bool = True) -> nn.Module:
        """The model's train(). It drops kept prefixes, because training changes the model."""
        if mode or self.model.training:
            self.store.clear()
        return self.stock("train")(mode)

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Open the context of a forward that is given a RelayCache."""
        if torch.compiler.is_dynamo_compiling():
            from ..model import uncompiled

            return uncompiled.call(enter, self.model, self.config.backend, args, kwargs)
        stop_if_dry()
        return enter(self.model, self.config.backend, args, kwargs)

    def after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Close it, and check that every layer attended to its shared prefix. See `leave` for what is returned."""
        if torch.compiler.is_dynamo_compiling():
            from ..model import uncompiled

            return uncompiled.call(leave, self.model, output is not None)
        return leave(self.model, output is not None)

    def open_call(self, arguments: CallArguments | None = None) -> AbstractContextManager[GenerateCall]:
        """Within it a generate() call runs, or another method that runs forwards like one."""
        return self._opened(GenerateCall(self._facts(arguments or CallArguments())))

    def open_dry_call(self, arguments: CallArguments) -> AbstractContextManager[DryCall]:
        """Within it a generate() call runs that computes nothing."""
        return self._opened(DryCall(self._facts(arguments, dry=True)))

    def _facts(self, arguments: CallArguments, dry: bool = False) -> CallFacts:
        view = ModelView.of(self.model)
        self.findings.look(view.modules)
        return CallFacts(view, self.config, self.store, self.graphs, self.compiled, self.findings, arguments, dry)

    @contextmanager
    def _opened(self, call: Call) -> Iterator[Call]:
        try:
            with self._lock:
                self._open.add(call)
            with running(call):
                yield call
        finally:
            with self._lock:
                self._open.discard(call)

    def _count(self, report: RelayReport) -> None:
        with self._lock:
            self.last = report
            self._stats.add(report)

    def _budget(self) -> int:
        """Bytes that the store may hold. The store asks at its first use, when the model is on its final device."""
        if self.config.max_store_bytes is not None:
            return int(self.config.max_store_bytes)
        device = device_of(self.model)
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory // 10
        return _DEFAULT_STORE_BYTES

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled model keeps its patch; it starts with nothing kept."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_ONE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "findings" not in state:  # of an earlier version of 0.1.0
            known = state["model_refusal"], state["unexplained"], state["_told"]
            names = ("model", "config", "last", "shadowed", "handles", "_stats")
            state = {"findings": ModelFindings(*known), **{name: state[name] for name in names}}
        self.__dict__.update(state)
        self._begin()
        interface.register()
