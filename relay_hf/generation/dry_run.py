"""A dry run of generate(): it ends at the call's prefill, with the decision about the call. Nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import Cache, GenerationConfig

from ..cache_utils import RelayCache
from ..errors import TokenIdError
from ..model.device import is_out_of_memory
from ..model.upstream.models import notes_undone
from ..model.upstream.names import INSTEAD, PAGED
from ..report import RelayReport
from .call import DryCall
from .decide import decide
from .decision import Decision
from .facts import PrefillInputs
from .findings import failure_of
from .finish import without_prefill
from .prefill_hook import counted
from .returned_cache import continuation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Outlook(NamedTuple):
    """What a call would do.

    Attributes:
        report: the report that it would have, before bytes are counted and a backend has run.
        decision: the decision; of a call on a returned cache, one without runs.
    """

    report: RelayReport
    decision: Decision


def dry_run(
    call: DryCall,
    stock: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device | None = None,
) -> Outlook:
    """What a call would do. generate()'s own code resolves its arguments, up to its prefill.

    Args:
        call: a dry call.
        stock: the model's own generate().
        args, kwargs: its arguments. Caches are not changed, and a streamer gets nothing.
        device: the device that the call would run on; None: the model's.

    Raises:
        Exception: what generate() raises for its arguments.
        TokenIdError: a token id has no embedding.
    """
    view, run = call.facts.view, _DryRun(call, device)
    call.stop = run.stop
    if kwargs.get("cache_implementation") != PAGED:  # its forwards run in a thread of their own
        args = tuple(map(_spared, args))
        kwargs = {name: _spared(value) for name, value in kwargs.items()} | _other_options(view.model, args, kwargs)
        try:
            with notes_undone(view.model, view.modules), suppress(_Stopped), run:
                stock(*args, **kwargs)
        finally:
            del call.stop  # it refers to the call, and the run to kept prefixes
    return run.found or run.without_prefill()


class _Stopped(BaseException):
    """The end of a dry call. No handler for an Exception catches it."""


class _DryRun(TorchFunctionMode):
    """The run of a dry call. It also ends the call where weights of any model are about to be computed with.

    The model's own forward ends it too, but generate() may run others before: of an encoder, or of an assistant.
    """

    def __init__(self, call: DryCall, device: torch.device | None) -> None:
        super().__init__()
        self.call, self.device = call, device
        self.found: Outlook | None = None
        self._deciding = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._deciding:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            weights = sum(isinstance(value, nn.Parameter) for value in tensors)
            if 0 < weights < len(tensors):  # generate() looks at weights one at a time, for their device and dtype
                self.stop(None)
        return func(*args, **kwargs)

    def stop(self, asked: PrefillInputs | None) -> NoReturn:
        """End the call, at its prefill or before that. If the caller's code goes on, the first end counts."""
        if self.found is None:
            self._deciding = True
            try:
                self.found = self.without_prefill() if asked is None else self._outlook(asked)
            finally:
                self._deciding = False
        raise _Stopped

    def without_prefill(self) -> Outlook:
        """The outlook of a call that does not come to its prefill."""
        decision = Decision(without_prefill(self.call.facts))
        return Outlook(decision.report(), decision)

    def _outlook(self, asked: PrefillInputs) -> Outlook:
        facts = self.call.facts
        given = asked.inputs.get(facts.view.cache_name)
        if isinstance(given, RelayCache) and given.is_filled:
            return Outlook(continuation(facts, given, asked).report, Decision())
        try:
            decision = decide(facts, asked, self.device)
        except TokenIdError:
            raise
        except Exception as error:
            decision = Decision(failure_of(error, is_out_of_memory(error)))
        return Outlook(counted(decision.report(), asked), decision)


def _other_options(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Options in the place of those with which generate() can't be ended before it computes."""
    places = [*args, kwargs.get("generation_config"), model.generation_config]
    configs = [place for place in places if isinstance(place, GenerationConfig)]
    return {
        name: value
        for option, others in INSTEAD.items()
        if kwargs.get(option, any(getattr(config, option, None) for config in configs))
        for name, value in others.items()
    }


class _Mute:
    """Stands for the caller's streamer, which generate() gives the prompt before its prefill."""

    def put(self, value: Any) -> None:
        """Drop the tokens."""

    def end(self) -> None:
        """Do nothing."""


def _spared(value: Any) -> Any:
    """What a dry call is given in the place of an argument.

    generate() marks a cache, writes to a streamer, and takes options out of a dictionary.
    """
    if isinstance(value, Cache):
        spare = _shell(value)
        for name, part in vars(value).items():
            if isinstance(part, Cache):  # a decoder's, beside an encoder's
                setattr(spare, name, _spared(part))
        if "layers" in vars(value):
            spare.layers = [_shell(layer) for layer in value.layers]
        if isinstance(value, RelayCache):
            spare.is_joined = value.is_joined or value.is_changed()
            spare.sort_layers()
        return spare
    if isinstance(value, dict):
        return dict(value)
    return _Mute() if hasattr(value, "put") and hasattr(value, "end") else value


def _shell(value: Any) -> Any:
    """An object with the same attributes. A copy of our cache would join changed rows, and one of our layers own KV."""
    shell = object.__new__(type(value))
    vars(shell).update(vars(value))
    return shell
