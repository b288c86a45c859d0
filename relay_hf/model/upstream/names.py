"""What Transformers calls the arguments that generate(), forwards and attention modules pass along."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from typing import Any

from transformers import GenerationConfig, GenerationMixin

from .version import MINOR

# The cache, in generate()'s keyword inputs, forwards, outputs and mask functions. Until 5.23 models with no attention
# (Mamba's kin) had a name of their own for it. Since 5.24 there is one name, and a decorator takes the old ones.
CACHE = "cache" if MINOR >= 24 else "past_key_values"
_STATE_CACHE = "cache" if MINOR >= 24 else "cache_params"
CACHE_NAMES = ("cache", "past_key_values", "cache_params")
_OLD_NAMES = CACHE_NAMES[1:] if MINOR >= 24 else ()

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

# What attention modules pass along that changes nothing in the mathematics of a forward that is relayed. Anything else
# may bias, mask or drop.
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

# Arguments of generate() that may bring code of the caller's, one or a list.
CALLERS_CODE = ("custom_generate", "logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer")
CRITERIA = "stopping_criteria"
# All arguments of generate() that are no inputs of the model, options included.
GENERATE_ARGUMENTS = frozenset(
    {"input_ids", *inspect.signature(GenerationMixin.generate).parameters, *vars(GenerationConfig())}
)
CRITERIA_POSITION = 3  # of the stopping criteria among generate()'s arguments, `self` left out

# What a configuration calls the things that make a model in training mode random.
RANDOM_IN_TRAINING = ("drop", "jitter", "noise")


def cache_name(inputs: Container[str]) -> str:
    """What the forward with the arguments `inputs` calls its cache; `CACHE` where it takes none."""
    return _STATE_CACHE if CACHE not in inputs and _STATE_CACHE in inputs else CACHE


def takes_cache(inputs: Mapping[str, inspect.Parameter]) -> bool:
    """Whether the forward with the arguments `inputs` takes a cache of Transformers' kind.

    XLM has an argument of that name for a dictionary of its own, and generate() never gives it one.
    """
    found = inputs.get(cache_name(inputs))
    if found is None:
        # A class that was written before 5.24 has an old name, and the new one arrives with the rest that it passes on.
        rest = any(each.kind is each.VAR_KEYWORD for each in inputs.values())
        return rest and any(name in inputs for name in _OLD_NAMES)
    return "dict" not in str(found.annotation)


def given_caches(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What keyword inputs of a forward have for its cache, by whichever name: old ones are still taken."""
    return tuple(inputs.get(name) for name in CACHE_NAMES)
