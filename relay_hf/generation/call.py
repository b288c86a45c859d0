"""The state of one generate() call while it runs, which its prefill, its forwards and its report share.

`warm`, `save` and `load` run within such a call too, because they put tokens through the model as one does. `explain`
runs a dry one: it ends where it would compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import ModelOutput

from ..attention.context import Capture, Observations, active_context, close_context
from ..attention.listener import listener
from ..attention.static_step import StaticStep
from ..cache_utils import RelayCache
from ..cache_utils.active import active_forward
from ..errors import RelayError, UnfitModelError
from ..graphs import GraphRunner
from ..graphs.active import active_runner
from ..model.device import is_out_of_memory
from ..model.linears import Linears
from ..model.upstream.caches import mark_as_users
from ..report import RelayReport
from .facts import CallFacts, PrefillInputs
from .findings import failure_of
from .notices import guarded
from .row_recorder import RowRecorder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(eq=False)
class FirstStep:
    """The first decode step of a call.

    Attributes:
        rerun: runs it again by stock, if the relayed one missed something: with the call, the error that says what was
            missed, and the step's arguments by name.
        raised: the model's code has raised an error in it.
    """

    rerun: Callable[[GenerateCall, UnfitModelError, Mapping[str, Any]], Any]
    raised: bool = False


@dataclass(eq=False)
class GenerateCall:
    """A call while it runs. The model's forwards report to it (`ForwardListener`).

    Attributes:
        facts: the facts of the call when it begins.
        report: the decision as a report; None before the prefill, and always in a mode without the common prefill.
        cache: the RelayCache that the call fills.
        masks_known: the masks of its forwards are the prompt's with ones appended. In a loop of the caller's own they
            may be others.
        rechosen: the user has chosen another attention implementation during a forward.
        backends: the backends that computed relayed attention so far.
        stand_in: the caller's RelayCache and the DynamicCache that this call fills in its place, or None.
        recorder: records a single row that is to be kept when the call ends, or None.
        runner: runs the forwards after the prefill, by CUDA graphs where it can; None before.
        first_step: the decode step that comes next, if it is the first one; else None.
        static_step, capture: see `ForwardListener`.
    """

    facts: CallFacts
    report: RelayReport | None = None
    cache: RelayCache | None = None
    masks_known: bool = True
    rechosen: bool = False
    backends: set[str] = field(default_factory=set)
    stand_in: tuple[RelayCache, DynamicCache] | None = None
    recorder: RowRecorder | None = None
    runner: GraphRunner | None = None
    first_step: FirstStep | None = None
    static_step: StaticStep | None = None
    capture: Capture | None = None

    # -- of its forwards ---------------------------------------------------------------------------------------------

    @property
    def configs(self) -> Sequence[PreTrainedConfig]:
        """The configurations whose attention implementation is switched during a forward."""
        return self.facts.view.configs

    @property
    def linears(self) -> Linears:
        """The linear layers that oneDNN computes during a forward."""
        return self.facts.linears

    def tokens(self, cache: RelayCache, input_ids: Tensor | None) -> None:
        """A forward of `input_ids` with `cache` is about to begin."""
        if self.recorder is not None and not (self.runner is not None and self.runner.capturing):
            self.recorder.feed(cache, input_ids)

    def knows_masks(self, cache: RelayCache) -> bool:
        """Whether the mask of a forward with `cache` is the prompt's, with ones behind it."""
        return self.masks_known and self.cache is cache

    def prepare(self, step: StaticStep) -> None:
        """A new static step was made."""
        if self.runner is not None:
            self.runner.prepare(step)

    def entered(self) -> None:
        """A static step's forward begins."""
        if self.runner is not None:
            self.runner.entered()

    def computed_by(self, backend: str) -> None:
        """A forward was replayed, and `backend` computed its attention."""
        self.backends.add(backend)
        self.first_step = None

    def left(self, seen: Observations, complete: bool) -> None:
        """A forward is over."""
        if self.first_step is not None:
            self.first_step.raised = not complete
        self.rechosen |= seen.rechosen
        self.backends |= seen.backends

    def may_rerun(self, cache: RelayCache) -> bool:
        """Whether a forward with `cache` is the first decode step."""
        return self.first_step is not None and cache is self.cache

    def checked(self, cache: RelayCache, missed: RelayError | None, inputs: Mapping[str, Any]) -> Any:
        """The outputs of stock's first decode step, if the relayed one missed something; None if it went well."""
        first = None
        if cache is self.cache:
            first, self.first_step = self.first_step, None
        if missed is None:
            return None
        if not isinstance(missed, UnfitModelError):
            raise missed
        if first is None:
            self.facts.findings.learn(failure_of(missed), self.facts.view.modules, sure=True)
            raise missed
        return first.rerun(self, missed, inputs)

    # -- of its caches -----------------------------------------------------------------------------------------------

    def stand_in_for(self, given: RelayCache) -> DynamicCache:
        """A DynamicCache in the place of the caller's empty RelayCache, which takes over its content at the end."""
        dynamic = given.to_dynamic()
        mark_as_users(dynamic)  # so generate() leaves no token in it that it does not return
        self.stand_in = (given, dynamic)
        return dynamic

    def with_given_cache(self, outputs: Any) -> Any:
        """What generate() returns, with the caller's own cache instead of the DynamicCache that stood in for it."""
        if self.stand_in is not None and isinstance(outputs, ModelOutput):
            given, dynamic = self.stand_in
            for name in [name for name, value in outputs.items() if value is dynamic]:
                outputs[name] = given
        return outputs

    # -- of its end --------------------------------------------------------------------------------------------------

    def keep_row(self) -> None:
        """Keep the single row of a call, if it was recorded. An error in this does not end the call."""
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        with guarded("the row of this call could not be kept for later ones"), torch.no_grad():
            recorder.keep()

    def let_go(self) -> None:
        """Drop all references to the cache. Then any reference that is left is somebody else's."""
        self.cache = self.static_step = self.recorder = None


@dataclass(eq=False)
class DryCall(GenerateCall):
    """A call that ends where it would begin to compute.

    Attributes:
        stop: ends it, at its prefill with the inputs of that, or at a forward before it with None.
    """

    stop: Callable[[PrefillInputs | None], NoReturn] = field(init=False)


def current_call() -> GenerateCall | None:
    """The call that runs in this context, or None."""
    found = listener.get()
    return found if isinstance(found, GenerateCall) else None


def stop_if_dry() -> None:
    """End the call that runs in this context, if it is a dry one: something is about to be computed."""
    call = current_call()
    if isinstance(call, DryCall):
        call.stop(None)


@contextmanager
def running(call: GenerateCall) -> Iterator[GenerateCall]:
    """Within it the model's forwards report to the call. At its end no forward is left open, whatever was raised."""
    before, runner, outer = listener.get(), active_runner.get(), active_forward.get()
    try:
        listener.set(call)
        active_runner.set(None)
        yield call
    except BaseException as error:
        if is_out_of_memory(error):
            call.facts.free_memory()
        raise
    finally:
        try:
            # PyTorch calls no forward hook after an interrupt (not an Exception), so open forwards are closed here.
            while (context := active_context()) is not outer and context is not None:
                close_context(context)
        finally:
            listener.set(before)
            active_runner.set(runner)
            call.runner = None  # it refers to the call: without it an interrupted call's memory is free at once
