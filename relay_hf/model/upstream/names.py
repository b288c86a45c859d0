"""Transformers' names for the arguments that generate(), forwards and attention modules pass along."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any

from transformers import GenerationConfig, GenerationMixin

from .version import MINOR

# The name of the cache in generate()'s keyword inputs, forwards, outputs and mask functions. Until 5.23 models without
# attention (Mamba and its relatives) had another name for it. Since 5.24 there is one name, and a decorator accepts the
# old ones.
CACHE = "cache" if MINOR >= 24 else "past_key_values"
_STATE_CACHE = "cache" if MINOR >= 24 else "cache_params"
CACHE_NAMES = ("cache", "past_key_values", "cache_params")
_OLD_NAMES = CACHE_NAMES[1:] if MINOR >= 24 else ()

# The input by which generate() hands what an encoder made of the prompt to the decoder.
ENCODER_OUTPUTS = "encoder_outputs"

# Keyword inputs of a forward that a relayed call understands. Any other may change what a token's keys and values are
# (images, token types, adapters by row).
KNOWN_INPUTS = frozenset(
    {
        *CACHE_NAMES,
        "attention_mask",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "tokenizer",  # for stop strings; generate() leaves it among the inputs
        "use_cache",
    }
)

# Inputs by which a processor tells images, video and audio (numbers above 0) from text (0). To a model that takes such
# media, text alone is the same with zeros as without them. To GPT-2, which takes none, a token type is one more token.
TOKEN_TYPES = frozenset({"mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids"})
# Words in the names of inputs that hold images, video or audio. generate() may have encoded them already.
_MEDIA = ("audio", "image", "input_features", "input_values", "mm_encoder", "pixel", "video")

# Arguments of attention modules that change nothing in the mathematics of a relayed forward. Any other argument may
# bias, mask or drop scores.
HARMLESS_ARGUMENTS = frozenset(
    {
        "cache_position",
        "is_causal",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "tokenizer",
        "use_cache",
    }
)

# Attention implementations that are known to compute attention.
KNOWN_ATTENTION = frozenset(
    {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention"}
)

# Arguments of generate() that may hold code of the caller: an object, or a list of them.
CALLERS_CODE = ("custom_generate", "logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer")
CRITERIA = "stopping_criteria"
PAGED = "paged"  # the cache_implementation for which generate() hands over to continuous batching
# Options of generate() that let it run forwards before its prefill, and those under which it otherwise does the same: a
# model that assists itself has fewer layers meanwhile, also after an exception. Healing generates the prompts' ends.
INSTEAD: dict[str, dict[str, Any]] = {
    "assistant_early_exit": {"assistant_early_exit": None, "prompt_lookup_num_tokens": 1},
    "token_healing": {"token_healing": False},
}
# All arguments of generate() that are no inputs of the model, options included.
_GENERATE = inspect.signature(GenerationMixin.generate)
GENERATE_ARGUMENTS = frozenset({"input_ids", *_GENERATE.parameters, *vars(GenerationConfig())})
CRITERIA_POSITION = 3  # of the stopping criteria among generate()'s arguments, `self` left out

PREFILL = "_prefill"  # generate()'s prefill, in all of its own decoding loops but assisted decoding's
# Methods of generate() that make a forward's inputs, or run forwards.
CALLERS_OF_FORWARDS = frozenset(
    {
        PREFILL,
        "_prepare_position_ids_for_generation",
        "_update_model_kwargs_for_generation",
        "create_masks_for_generate",
        "prepare_inputs_for_generation",
    }
)

INITIALIZE = "_init_weights"  # a method of models that no forward runs

# Words in a configuration's names for the probabilities that make a model random in training mode.
RANDOM_IN_TRAINING = ("drop", "jitter", "noise")


def arguments_of(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a model's generate(), by name, those of its `**kwargs` too.

    A wrapper that takes `*args` hands them on to Transformers' own generate().

    Raises:
        TypeError: generate() has no such arguments.
    """
    signature = inspect.signature(generate)
    if any(each.kind is each.VAR_POSITIONAL for each in signature.parameters.values()):
        bound = _GENERATE.bind_partial(None, *args, **kwargs)
    else:
        bound = signature.bind_partial(*args, **kwargs)
    return {**bound.arguments, **bound.arguments.get("kwargs", {})}


def cache_name(inputs: Container[str]) -> str:
    """The name of the cache among a forward's arguments `inputs`; `CACHE` if it takes no cache."""
    return _STATE_CACHE if CACHE not in inputs and _STATE_CACHE in inputs else CACHE


def takes_cache(inputs: Mapping[str, inspect.Parameter]) -> bool:
    """Whether the forward with the arguments `inputs` takes a cache of Transformers' kind.

    XLM has an argument of that name for a dictionary of its own, for which generate() never makes a cache.
    """
    found = inputs.get(cache_name(inputs))
    if found is None:
        # A class written before 5.24 has an old name, and takes the new one among its other keyword arguments.
        rest = any(each.kind is each.VAR_KEYWORD for each in inputs.values())
        return rest and any(name in inputs for name in _OLD_NAMES)
    return "dict" not in str(found.annotation)


def is_media(name: str) -> bool:
    """Whether an input of that name holds images, video or audio, or belongs to them."""
    return any(word in name for word in _MEDIA)


def given_caches(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of a forward's keyword inputs for its cache, under any of its names: old ones are still accepted."""
    return tuple(inputs.get(name) for name in CACHE_NAMES)
