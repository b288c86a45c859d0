"""The table of facts about Transformers that relay_hf depends on, each with the version from which it holds."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

from transformers import (
    Cache,
    DynamicCache,
    GenerationMixin,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    cache_utils,
    masking_utils,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING
from transformers.integrations import sdpa_attention
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from . import caches
from .attention import ATTENTION_FIELD
from .fact import Fact, arguments, mentions, takes
from .linears import ADDMM, TransposedLinear
from .models import ENCODE, PREPARE_INPUTS, QUANTIZER, is_librarys
from .names import CACHE_NAMES, CRITERIA, CRITERIA_POSITION, PREFILL
from .version import MINOR

_TAKEN = "input_modalities"
_MODES = ("greedy_search", "sample", "beam_search", "beam_sample")
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
    takes(GenerationMixin, PREFILL, "input_ids", "generation_config", "model_kwargs", "is_first_iteration"),
    takes(GenerationMixin, ENCODE, "inputs_tensor", "model_kwargs", "model_input_name", "generation_config"),
    *(
        Fact(
            f"what GenerationMixin.{loop} begins with",
            [PREFILL],
            partial(mentions, GenerationMixin, loop, [PREFILL]),
        )
        for loop in ("_sample", "_beam_search")
    ),
    Fact(
        "the decoding loops of generate()'s modes",
        ["_sample", "_sample", "_beam_search", "_beam_search"],
        lambda: [GENERATION_MODES_MAPPING[GenerationMode(mode)] for mode in _MODES],
    ),
    *(
        takes(
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
    takes(GenerationMixin, "_prepare_position_ids_for_generation", "inputs_tensor", "model_kwargs"),
    takes(GenerationMixin, "_supports_default_dynamic_cache"),
    Fact(
        f"the place of {CRITERIA} among the arguments of generate()",
        CRITERIA_POSITION,
        lambda: _place(arguments(GenerationMixin, "generate")()),
    ),
    *(
        Fact(
            "the names under which generate() keeps its cache",
            names,
            lambda: mentions(GenerationMixin, "_prepare_cache_for_generation", CACHE_NAMES),
            since,
        )
        for names, since in ((["past_key_values", "cache_params"], 17), (["cache"], 24))
    ),
    Fact(
        "the mark of a cache that the caller of generate() has given",
        [caches.USERS_MARK],
        lambda: mentions(GenerationMixin, "_prepare_cache_for_generation", [caches.USERS_MARK]),
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
    takes(Cache, "update", "key_states", "value_states", "layer_idx", *_REST),
    takes(Cache, "get_mask_sizes", "query_length", "layer_idx"),
    takes(Cache, "get_query_offset", "layer_idx"),
    takes(Cache, "get_seq_length", "layer_idx"),
    takes(Cache, "crop", "tokens_to_remove"),
    takes(Cache, "reorder_cache", "beam_idx"),
    takes(Cache, "batch_repeat_interleave", "repeats"),
    takes(Cache, "batch_select_indices", "indices"),
    takes(Cache, "reset"),
    takes(Cache, "__init__", "layers", ignored=("layer_class_to_replicate", "offloading", "offload_only_non_sliding")),
    takes(DynamicCache, "__init__", "config", ignored=("ddp_cache_data", "offloading", "offload_only_non_sliding")),
    takes(cache_utils.DynamicLayer, "update", "key_states", "value_states", *_REST),
    takes(cache_utils.DynamicLayer, "lazy_initialization", "key_states", "value_states"),
    takes(cache_utils.DynamicLayer, "get_mask_sizes", "query_length"),
    takes(cache_utils.DynamicLayer, "get_seq_length"),
    takes(cache_utils.DynamicLayer, "get_max_length"),
    takes(cache_utils.DynamicLayer, "crop", "tokens_to_remove"),
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
    takes(
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
    takes(
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
        takes(
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
    takes(masking_utils, "causal_mask_function", "batch_idx", "head_idx", "q_idx", "kv_idx"),
    takes(masking_utils, "sliding_window_causal_mask_function", "sliding_window"),
    Fact(
        "the kinds of RoPE, of which dynamic and longrope change with the length of a text",
        ["dynamic", "linear", "llama3", "longrope", "proportional", "yarn"],
        lambda: sorted(name for name, make in ROPE_INIT_FUNCTIONS.items() if is_librarys(make.__module__)),
    ),
    Fact("a configuration's field for its RoPE", True, lambda: hasattr(LlamaConfig(), "rope_parameters")),
    # Linear layers
    Fact(
        "the function by which GPT-2's linear layer multiplies",
        [ADDMM],
        partial(mentions, TransposedLinear, "forward", [ADDMM]),
    ),
    Fact(
        "the mark of a quantized model",
        [QUANTIZER],
        partial(mentions, PreTrainedModel, "dequantize", [QUANTIZER]),
    ),
    Fact("the list of what a model takes, as text and images", True, partial(hasattr, PreTrainedModel, _TAKEN)),
    Fact(
        "a configuration's field for its attention implementation",
        True,
        partial(hasattr, PreTrainedConfig(), ATTENTION_FIELD),
    ),
    Fact(
        "the mark of a model that compiles as a whole",
        True,
        partial(hasattr, PreTrainedModel, "_can_compile_fullgraph"),
    ),
)


def _place(found: Any) -> Any:
    return found.index(CRITERIA) if isinstance(found, list) else found


def facts(minor: int = MINOR) -> list[Fact]:
    """The facts that hold for a minor version of Transformers 5. If several have one name, the latest counts."""
    latest: dict[str, Fact] = {}
    for fact in sorted(FACTS, key=lambda each: each.since):
        if fact.since <= minor:
            latest[fact.what] = fact
    return [*latest.values()]
