"""The facts of a generate() call when it begins: its arguments, its model, and the inputs of its prefill; read-only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..compiled import CompiledSteps
from ..config import RelayConfig
from ..graphs import GraphPool
from ..model.linears import Linears, choose
from ..model.upstream.models import is_librarys
from ..model.upstream.names import CALLERS_CODE, GENERATE_ARGUMENTS, TOKEN_TYPES, arguments_of
from ..model.view import ModelView
from ..prefix.source import PrefixSource
from ..prefix.store import PrefixStore
from .findings import ModelFindings

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class CallArguments:
    """Facts that the arguments of generate() tell about a call.

    Attributes:
        given: names of all arguments that the caller gave; None outside of generate().
        inputs: names of the model's inputs that the caller gave, without the first one; None outside of generate().
        names_cache: the caller named a cache implementation.
        own_loop: the decoding loop is the caller's (`custom_generate`).
        callers_code: code of the caller runs between the steps, and may change the model.
    """

    given: frozenset[str] | None = None
    inputs: frozenset[str] | None = None
    names_cache: bool = False
    own_loop: bool = False
    callers_code: bool = False

    @classmethod
    def of(cls, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallArguments:
        """Read the arguments. generate() itself raises for those that don't fit."""
        arguments = dict(kwargs)
        if args:
            with suppress(TypeError):
                arguments |= arguments_of(generate, args, kwargs)
        given = frozenset(arguments)
        config = arguments.get("generation_config")
        code = [arguments.get(name) for name in CALLERS_CODE]
        each = [one for group in code for one in (group if isinstance(group, list) else [group]) if one is not None]
        return cls(
            given,
            given - GENERATE_ARGUMENTS,
            names_cache=bool(arguments.get("cache_implementation") or getattr(config, "cache_implementation", None)),
            own_loop=arguments.get("custom_generate") is not None,
            # A class that the caller derives from one of Transformers', such as a streamer, is the caller's code.
            callers_code=not all(is_librarys(type(one).__module__) for one in each),
        )

    def asked(self, *names: str) -> bool:
        """Whether the caller gave an option. All count as given if a generation_config was."""
        return self.given is None or "generation_config" in self.given or not self.given.isdisjoint(names)

    def gives(self, name: str) -> bool:
        """Whether the caller gave an input of the model, or runs a loop of its own, which makes all of them."""
        return self.inputs is None or self.own_loop or name in self.inputs


@dataclass(frozen=True, eq=False)
class CallFacts:
    """The facts of a call when it begins.

    Attributes:
        view: the model.
        config: the options in force.
        store: the kept prefixes of the model.
        graphs: the captured decode steps of the model.
        compiled: the compiled decode step of the model.
        findings: results of the model's earlier calls.
        arguments: facts about the arguments.
        dry: nothing is computed in the call, and nothing changed.
    """

    view: ModelView
    config: RelayConfig
    store: PrefixStore
    graphs: GraphPool
    compiled: CompiledSteps
    findings: ModelFindings
    arguments: CallArguments = CallArguments()
    dry: bool = False

    @property
    def source(self) -> PrefixSource:
        """The protocol by which a call finds and keeps prefixes; the store implements it."""
        return self.store

    @cached_property
    def linears(self) -> Linears:
        """The linear layers that oneDNN computes in the relayed forwards of the call."""
        view = self.view
        return choose(view.modules, view.device, view.model.dtype, self.config.linears)

    def free_memory(self) -> None:
        """Drop all kept prefixes that are not pinned, graphs and reordered weights: a running call lacks memory."""
        self.store.release()
        self.graphs.clear()
        self.compiled.weights.clear()


class PrefillInputs(NamedTuple):
    """The arguments that generate() gives its prefill.

    Attributes:
        input_ids: `[B, L]`, every row that the model will run.
        generation_config: the configuration as generate() resolved it.
        inputs: the forward's keyword inputs, as generate() made them.
        first: generate()'s `is_first_iteration`.
    """

    input_ids: Tensor
    generation_config: GenerationConfig
    inputs: dict[str, Any]
    first: bool = True

    @property
    def chunk(self) -> int | None:
        """How many tokens go through the model at once, as the caller asks; None for all."""
        return self.generation_config.prefill_chunk_size

    def drop_types(self) -> None:
        """Leave the types of tokens out of all later forwards of the call; of a relayed one they are all 0."""
        for name in TOKEN_TYPES:
            self.inputs.pop(name, None)
