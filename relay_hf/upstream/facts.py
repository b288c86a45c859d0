"""What relay_hf takes for granted of Transformers, fact by fact, and the check that it still holds.

A release of Transformers comes every two weeks. One in which a fact no longer holds is refused when a model is patched,
by the name of the fact: a relay that goes on would be wrong, or would quietly do nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from types import CodeType
from typing import Any

from transformers import (
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    cache_utils,
    masking_utils,
)
from transformers.integrations import sdpa_attention
from transformers.modeling_outputs import CausalLMOutputWithPast

from .. import tested
from ..errors import RelayError
from . import caches
from .attention import ATTENTION_FIELD
from .models import PREFILL, PREPARE_INPUTS, is_librarys
from .names import CACHE, CACHE_NAMES, CRITERIA, CRITERIA_POSITION
from .version import INSTALLED, MINOR, SUPPORTED, is_supported

_ABSENT = "nothing of that name"


@dataclass(frozen=True)
class Fact:
    """One thing that relay_hf takes for granted.

    Attributes:
        what: in words, as an error names it.
        expected: how it was, from the version `since` on.
        find: how it is.
        since: the first minor version of Transformers 5 that it holds of, of those that are supported.
        ignored: what may be found besides.
    """

    what: str
    expected: Any
    find: Callable[[], Any]
    since: int = 17
    ignored: frozenset[str] = frozenset()

    def difference(self) -> str | None:
        """How it is another now, in words, or None."""
        try:
            found = self.find()
        except (AttributeError, ImportError, TypeError, ValueError):
            found = _ABSENT
        if isinstance(found, list):
            found = [name for name in found if name not in self.ignored]
        return None if found == self.expected else f"{self.what}: expected {self.expected}, found {found}"


def _arguments(owner: Any, name: str) -> Callable[[], list[str]]:
    def find() -> list[str]:
        return [each for each in inspect.signature(getattr(owner, name)).parameters if each != "self"]

    return find


def _takes(owner: Any, name: str, *expected: str, since: int = 17, ignored: Sequence[str] = ()) -> Fact:
    """That a function or method takes arguments of these names, in this order."""
    where = getattr(owner, "__qualname__", owner.__name__)
    return Fact(f"the arguments of {where}.{name}", [*expected], _arguments(owner, name), since, frozenset(ignored))


def _mentions(owner: Any, name: str, words: Sequence[str]) -> list[str]:
    """Which of `words` the code of a function names, as an attribute or as text."""

    def names(code: CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from names(constant)
            elif isinstance(constant, str):
                yield constant

    found = {*names(inspect.unwrap(getattr(owner, name)).__code__)}
    return [word for word in words if word in found]


_REST = ("args", "kwargs")
_STATE_FIELDS = (
    "conv_kernel_size",
    "conv_states",
    "device",
    "dtype",
    "has_previous_state",
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "number_of_states",
    "recurrent_states",
)
_MASK_EXTRAS = ("allow_is_causal_skip", "allow_is_bidirectional_skip", "allow_torch_fix", "use_vmap")

FACTS = (
    # generate()
    _takes(GenerationMixin, PREFILL, "input_ids", "generation_config", "model_kwargs", "is_first_iteration"),
    *(
        Fact(
            f"what GenerationMixin.{loop} begins with",
            [PREFILL],
            partial(_mentions, GenerationMixin, loop, [PREFILL]),
        )
        for loop in ("_sample", "_beam_search")
    ),
    *(
        _takes(
            GenerationMixin,
            PREPARE_INPUTS,
            "input_ids",
            "next_sequence_length",
            name,
            "attention_mask",
            "inputs_embeds",
            "is_first_iteration",
            "kwargs",
            since=since,
        )
        for name, since in (("past_key_values", 17), ("cache", 24))
    ),
    _takes(GenerationMixin, "_prepare_position_ids_for_generation", "inputs_tensor", "model_kwargs"),
    _takes(GenerationMixin, "_supports_default_dynamic_cache"),
    Fact(
        f"the place of {CRITERIA} among the arguments of generate()",
        CRITERIA_POSITION,
        lambda: _arguments(GenerationMixin, "generate")().index(CRITERIA),
    ),
    *(
        Fact(
            "the names under which generate() keeps its cache",
            names,
            lambda: _mentions(GenerationMixin, "_prepare_cache_for_generation", CACHE_NAMES),
            since,
        )
        for names, since in ((["past_key_values", "cache_params"], 17), (["cache"], 24))
    ),
    Fact(
        "the mark of a cache that the caller of generate() has given",
        [caches.USERS_MARK],
        lambda: _mentions(GenerationMixin, "_prepare_cache_for_generation", [caches.USERS_MARK]),
    ),
    *(
        Fact(
            "the name of the cache in a model's outputs",
            name,
            lambda: next(each.name for each in fields(CausalLMOutputWithPast) if each.name in CACHE_NAMES),
            since,
        )
        for name, since in (("past_key_values", 17), ("cache", 24))
    ),
    # Caches
    _takes(Cache, "update", "key_states", "value_states", "layer_idx", *_REST),
    _takes(Cache, "get_mask_sizes", "query_length", "layer_idx"),
    _takes(Cache, "get_query_offset", "layer_idx"),
    _takes(Cache, "get_seq_length", "layer_idx"),
    _takes(Cache, "crop", "tokens_to_remove"),
    _takes(Cache, "reorder_cache", "beam_idx"),
    _takes(Cache, "batch_repeat_interleave", "repeats"),
    _takes(Cache, "batch_select_indices", "indices"),
    _takes(Cache, "reset"),
    _takes(Cache, "__init__", "layers", ignored=("layer_class_to_replicate", "offloading", "offload_only_non_sliding")),
    _takes(DynamicCache, "__init__", "config", ignored=("ddp_cache_data", "offloading", "offload_only_non_sliding")),
    _takes(cache_utils.DynamicLayer, "update", "key_states", "value_states", *_REST),
    _takes(cache_utils.DynamicLayer, "lazy_initialization", "key_states", "value_states"),
    _takes(cache_utils.DynamicLayer, "get_mask_sizes", "query_length"),
    _takes(cache_utils.DynamicLayer, "get_seq_length"),
    _takes(cache_utils.DynamicLayer, "get_max_length"),
    _takes(cache_utils.DynamicLayer, "crop", "tokens_to_remove"),
    Fact(
        "the kinds of layers of a DynamicCache that keep nothing",
        ["DummyLayer"],
        lambda: [kind.__name__ for kind in caches.EMPTY_LAYERS],
        since=23,
    ),
    Fact(
        "what a recurrent layer of a cache holds",
        [*_STATE_FIELDS],
        lambda: sorted(vars(cache_utils.LinearAttentionLayer(number_of_states=1))),
        ignored=frozenset({"record_past"}),
    ),
    # Attention and its masks
    _takes(
        sdpa_attention,
        "sdpa_attention_forward",
        "module",
        "query",
        "key",
        "value",
        "attention_mask",
        "dropout",
        "scaling",
        "is_causal",
        "kwargs",
        ignored=("position_bias", "cache"),
    ),
    _takes(
        masking_utils,
        "sdpa_mask",
        "batch_size",
        "q_length",
        "kv_length",
        "q_offset",
        "kv_offset",
        "mask_function",
        "attention_mask",
        "local_size",
        "device",
        "kwargs",
        ignored=_MASK_EXTRAS,
    ),
    *(
        _takes(
            masking_utils,
            "create_masks_for_generate",
            "config",
            "inputs_embeds",
            "attention_mask",
            name,
            "position_ids",
            "or_mask_function",
            "and_mask_function",
            "block_sequence_ids",
            "kwargs",
            since=since,
        )
        for name, since in (("past_key_values", 17), ("cache", 24))
    ),
    _takes(masking_utils, "causal_mask_function", "batch_idx", "head_idx", "q_idx", "kv_idx"),
    _takes(masking_utils, "sliding_window_causal_mask_function", "sliding_window"),
    Fact(
        "a configuration's field for its attention implementation",
        True,
        lambda: _has(PreTrainedConfig(), ATTENTION_FIELD),
    ),
    Fact("the mark of a model that compiles as a whole", True, lambda: _has(PreTrainedModel, "_can_compile_fullgraph")),
)


def _has(owner: object, name: str) -> bool:
    return hasattr(owner, name)


def facts(minor: int = MINOR) -> list[Fact]:
    """Those that hold of a minor version of Transformers 5: of several of one thing, the latest."""
    latest: dict[str, Fact] = {}
    for fact in sorted(FACTS, key=lambda each: each.since):
        if fact.since <= minor:
            latest[fact.what] = fact
    return [*latest.values()]


@lru_cache(maxsize=1)
def changed() -> str | None:
    """What of the installed Transformers is not as relay_hf takes it to be, in words, or None."""
    if not is_supported():
        return f"its version: expected {SUPPORTED}, found {INSTALLED}"
    return next(filter(None, (fact.difference() for fact in facts())), None)


@lru_cache(maxsize=256)
def changed_in(kind: type[PreTrainedModel]) -> str | None:
    """The same of what a model's class calls its cache; None too where it takes none, or is not Transformers' own."""
    forward = kind.forward
    if not is_librarys(kind.__module__) or not is_librarys(getattr(forward, "__module__", None)):
        return None
    parameters = inspect.signature(forward).parameters
    known = CACHE_NAMES if MINOR < 24 else (CACHE,)
    if any(name in parameters for name in known):
        return None
    # One that takes a cache says so in an annotation.
    others = [name for name, each in parameters.items() if "Cache" in str(each.annotation) or name in CACHE_NAMES]
    what = f"the cache among the arguments of {kind.__name__}.forward"
    return f"{what}: expected {CACHE!r}, found {others[0]!r}" if others else None


def check(kind: type[PreTrainedModel]) -> None:
    """Raise a RelayError that names the fact, if Transformers or a class of its models is not as relay_hf knows it."""
    difference = changed() or changed_in(kind)  # type: ignore[arg-type] # a class can be hashed
    if difference is not None:
        raise RelayError(refusal_of(difference))


def refusal_of(difference: str) -> str:
    """A changed fact, with what is installed, what is supported, and what to do."""
    tried = ", ".join(tested.TRANSFORMERS)
    return (
        f"this Transformers is not what relay_hf hooks into: {difference}. Installed is {INSTALLED}; relay_hf supports "
        f"{SUPPORTED} and was tested with {tried}. Install one of these, or a relay_hf that knows {INSTALLED}; the "
        "model is as it was, and generates without relay_hf."
    )
