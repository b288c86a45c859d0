"""The generate() call that runs now: what its prefill decided, for the hooks and the report."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.utils import ModelOutput

from ..cache_utils import RelayCache
from ..model.upstream.caches import mark_as_users
from ..model.upstream.models import is_librarys
from ..model.upstream.names import CALLERS_CODE, GENERATE_ARGUMENTS
from ..report import RelayReport

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..attention.static_step import StaticStep
    from ..graphs import GraphRunner
    from .row_recorder import RowRecorder


@dataclass(eq=False)
class GenerateCall:
    """One generate() call.

    Attributes:
        owner: the handle of the model that generates.
        modules: all modules of the model, listed once.
        configs: those of them whose attention implementation a relayed forward switches.
        given: names of all arguments that the caller gave to generate(); None outside of it.
        inputs: names of the model's inputs that the caller gave to generate(), the first apart; None outside of it.
        names_cache: the caller named a cache implementation.
        own_loop: the decoding loop is the caller's (`custom_generate`).
        callers_code: code of the caller's runs between the steps, and may do anything to the model meanwhile.
        report: what was decided; None until the prefill, or for good in a mode that has none.
        cache: the RelayCache that the call fills.
        masks_known: its masks are the prefill's with ones appended, so that decode steps need not read them (on a GPU
            that read would wait for the device). Not so in a loop of the caller's own.
        rechosen: the user has chosen another attention implementation during a forward.
        backends: what computed relayed attention so far.
        stand_in: the caller's RelayCache and the DynamicCache that this call fills in its place, or None.
        transcript: what is to be kept of a single row when the call ends, or None.
        decoding: the latest decode step, if it was a static one.
        stepper: what runs the forwards behind the prefill, by CUDA graphs where it can; None before.
        capture: what the layers of the forward that runs now leave in the frame's `capture`, or None.
    """

    owner: object
    modules: list[nn.Module]
    configs: list[PreTrainedConfig]
    given: frozenset[str] | None = None
    inputs: frozenset[str] | None = None
    names_cache: bool = False
    own_loop: bool = False
    callers_code: bool = False
    report: RelayReport | None = None
    cache: RelayCache | None = None
    masks_known: bool = True
    rechosen: bool = False
    stand_in: tuple[RelayCache, DynamicCache] | None = None
    transcript: RowRecorder | None = None
    decoding: StaticStep | None = None
    stepper: GraphRunner | None = None
    capture: dict[int, tuple[Tensor, Tensor]] | None = None
    backends: set[str] = field(default_factory=set)

    def note_arguments(self, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the arguments of generate() say of the call. Those that don't fit are left to generate() itself."""
        arguments = dict(kwargs)
        if args:
            with suppress(TypeError):
                arguments |= inspect.signature(generate).bind_partial(*args, **kwargs).arguments
        self.given = frozenset(arguments.keys() | arguments.get("kwargs", {}).keys())
        self.inputs = self.given - GENERATE_ARGUMENTS
        config = arguments.get("generation_config")
        self.names_cache = bool(arguments.get("cache_implementation") or getattr(config, "cache_implementation", None))
        self.own_loop = arguments.get("custom_generate") is not None
        given = [arguments.get(name) for name in CALLERS_CODE]
        each = [one for group in given for one in (group if isinstance(group, list) else [group]) if one is not None]
        # A class that is derived from one of Transformers', as streamers are, is the caller's.
        self.callers_code = not all(is_librarys(type(one).__module__) for one in each)

    def asked(self, *names: str) -> bool:
        """Whether an option or input is the caller's, as far as that is known: of a generation_config, all may be."""
        return self.given is None or "generation_config" in self.given or not self.given.isdisjoint(names)

    def stand_in_for(self, given: RelayCache) -> DynamicCache:
        """A DynamicCache in the place of the caller's, which is to hold in the end what stock's would."""
        dynamic = given.to_dynamic()
        mark_as_users(dynamic)  # so generate() leaves no token in it that it does not return
        given.reset()  # or its tokens would be held twice
        self.stand_in = (given, dynamic)
        return dynamic

    def with_given_cache(self, outputs: Any) -> Any:
        """What generate() returns, with the caller's own cache in the place of what stood in for it."""
        if self.stand_in is not None and isinstance(outputs, ModelOutput):
            given, dynamic = self.stand_in
            for name in [name for name, value in outputs.items() if value is dynamic]:
                outputs[name] = given
        return outputs


current_call: ContextVar[GenerateCall | None] = ContextVar("relay_hf_call", default=None)


def open_call() -> GenerateCall:
    """The call that runs in this context; an error outside of one."""
    call = current_call.get()
    if call is None:
        raise RuntimeError("no generate() call is open")
    return call
