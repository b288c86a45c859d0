"""What is known of a generate() call when it begins, and what its prefill is given. It stays as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..config import RelayConfig
from ..graphs import GraphPool
from ..model.upstream.models import is_librarys
from ..model.upstream.names import CALLERS_CODE, GENERATE_ARGUMENTS
from ..model.view import ModelView
from ..prefix.source import PrefixSource
from ..prefix.store import PrefixStore
from .findings import ModelFindings

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class CallArguments:
    """What the arguments of generate() say of a call.

    Attributes:
        given: names of all arguments that the caller gave; None outside of generate().
        inputs: names of the model's inputs that the caller gave, the first apart; None outside of generate().
        names_cache: the caller named a cache implementation.
        own_loop: the decoding loop is the caller's (`custom_generate`).
        callers_code: code of the caller's runs between the steps, and may do anything to the model meanwhile.
    """

    given: frozenset[str] | None = None
    inputs: frozenset[str] | None = None
    names_cache: bool = False
    own_loop: bool = False
    callers_code: bool = False

    @classmethod
    def of(cls, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallArguments:
        """Read them. Arguments that don't fit are left to generate() itself."""
        arguments = dict(kwargs)
        if args:
            with suppress(TypeError):
                arguments |= inspect.signature(generate).bind_partial(*args, **kwargs).arguments
        given = frozenset(arguments.keys() | arguments.get("kwargs", {}).keys())
        config = arguments.get("generation_config")
        code = [arguments.get(name) for name in CALLERS_CODE]
        each = [one for group in code for one in (group if isinstance(group, list) else [group]) if one is not None]
        return cls(
            given,
            given - GENERATE_ARGUMENTS,
            names_cache=bool(arguments.get("cache_implementation") or getattr(config, "cache_implementation", None)),
            own_loop=arguments.get("custom_generate") is not None,
            # A class that is derived from one of Transformers', as streamers are, is the caller's.
            callers_code=not all(is_librarys(type(one).__module__) for one in each),
        )

    def asked(self, *names: str) -> bool:
        """Whether an option or input is the caller's, as far as that is known: of a generation_config, all may be."""
        return self.given is None or "generation_config" in self.given or not self.given.isdisjoint(names)


@dataclass(frozen=True, eq=False)
class CallFacts:
    """What is known of a call when it begins.

    Attributes:
        view: the model.
        config: the options in force.
        store: the prefixes that are kept of the model.
        graphs: the decode steps that were captured of it.
        findings: what earlier calls have shown of it.
        arguments: what the caller gave.
    """

    view: ModelView
    config: RelayConfig
    store: PrefixStore
    graphs: GraphPool
    findings: ModelFindings
    arguments: CallArguments = CallArguments()

    @property
    def source(self) -> PrefixSource:
        """What finds and keeps prefixes, as far as a call goes: the store."""
        return self.store

    def free_memory(self) -> None:
        """Drop what is kept for later calls and not pinned: a call that runs now lacks the memory."""
        self.store.release()
        self.graphs.clear()


class PrefillInputs(NamedTuple):
    """What generate() gives its prefill.

    Attributes:
        input_ids: `[B, L]`, every row that the model will run.
        generation_config: as generate() resolved it.
        inputs: the forward's keyword inputs, as generate() has them.
        first: generate()'s `is_first_iteration`.
    """

    input_ids: Tensor
    generation_config: GenerationConfig
    inputs: dict[str, Any]
    first: bool = True

    @property
    def chunk(self) -> int | None:
        """Tokens that go through the model at once, as the caller asks; None for all."""
        return self.generation_config.prefill_chunk_size
