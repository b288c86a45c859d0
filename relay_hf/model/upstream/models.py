"""Facts that Transformers' models and configurations tell about themselves, beyond their public methods."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .names import ENCODER_OUTPUTS, takes_cache

_LIBRARY = "transformers."
# What encodes a call's inputs before that. At first it was for encoder-decoder models alone, and had another name.
_ENCODERS = ("_maybe_prepare_encoder_kwargs_for_generation", "_prepare_encoder_decoder_kwargs_for_generation")
ENCODE = next(name for name in _ENCODERS if hasattr(GenerationMixin, name))
_ENCODED = "mm_encoder_outputs"
_IMAGES = frozenset({"image_patches", "pixel_values", "pixel_values_images", "pixel_values_videos"})
PREPARE_INPUTS = "prepare_inputs_for_generation"
GENERATION_DEFAULTS = "generation_config"
QUANTIZER = "hf_quantizer"
_LOOPS = ("_sample", "_beam_search")

# Transformers' own hooks that change no value, by the end of their file's path and the start of their qualified names.
# The first ones collect hidden states and attentions, and are idle unless a call asks for these. The last one lets
# embeddings record gradients. It stays on a model when trainers switch gradient checkpointing off for a call.
HARMLESS_HOOKS = (
    ("utils/output_capturing.py", ""),
    ("modeling_utils.py", "PreTrainedModel.enable_input_require_grads."),
)
# Transformers' own quantized layers that treat every row by itself, by file: activations have no scale, a fixed one, or
# one for each token. The first two files are tried in the tests; the others run on GPUs alone, and were read.
QUANTIZED_LAYERS = {
    "integrations/gemma_quant.py": ("QuantizedEmbedding", "QuantizedLinear"),
    "integrations/bitnet.py": ("AutoBitLinear", "BitLinear"),
    "integrations/finegrained_fp8.py": ("FP8Linear",),
    "integrations/fbgemm_fp8.py": ("FbgemmFp8Linear",),
    "integrations/compressed_tensors.py": ("CompressedTensorsFP8Linear",),
    "integrations/mxfp4.py": ("Mxfp4GptOssExperts", "Mxfp4GptOssMLP"),
}
_SHIFT = "rope_deltas"  # the shift of positions by images, which M-RoPE's types write to the model
# Attributes of modules that do not change what they compute: options of generate(), a path, a length that was seen,
# idle hooks. The shift is read where a forward is given no positions, and generate() writes it in every call.
PASSING_ATTRIBUTES = frozenset(
    {
        _SHIFT,
        "_output_capturing_hooks_installed",
        GENERATION_DEFAULTS,
        "max_seq_len_cached",
        "name_or_path",
        "warnings_issued",
    }
)
INITIALIZED_MARK = "_is_hf_initialized"  # on every module that a checkpoint was loaded into

# Kinds of RoPE whose frequencies depend on the length of the sequence.
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
_CONTEXT = "max_position_embeddings"
_ORIGINAL_CONTEXT = "original_max_position_embeddings"
# What generate() notes on a model before its prefill: the length of static caches, and the compiled forward.
_NOTES = ("_previous_max_cache_length", "_compiled_call", "_last_compile_config")


def is_librarys(module_name: str | None) -> bool:
    """Whether code of the Python module `module_name` is Transformers' own."""
    return str(module_name or "").startswith(_LIBRARY)


def replaced_preparation(model: PreTrainedModel) -> bool:
    """Whether the method that prepares a forward's inputs was replaced on this model by another object's.

    peft's prompt learning methods do this. Their version adds tokens to a forward with an empty cache.
    """
    found = vars(model).get(PREPARE_INPUTS)
    return found is not None and getattr(found, "__self__", None) is not model


def forward_inputs(kind: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    """The arguments of a class's forward, by name."""
    return inspect.signature(kind.forward).parameters


def has_loops_of_its_own(model: PreTrainedModel) -> bool:
    """Whether a model has decoding loops of its own instead of Transformers'."""
    return any(vars(model).get(name) or not is_stocks(model, name) for name in _LOOPS)


def is_stocks(model: PreTrainedModel, name: str) -> bool:
    """Whether a model's class has Transformers' own version of a method of generate()."""
    return getattr(type(model), name) is getattr(GenerationMixin, name)


def counts_positions_itself(model: PreTrainedModel) -> bool:
    """Whether a model's class counts the positions of a prompt in a way of its own."""
    return not is_stocks(model, "_prepare_position_ids_for_generation")


def takes_media(model: PreTrainedModel) -> bool:
    """Whether a model takes images, video or audio beside text."""
    taken, default = model.input_modalities, PreTrainedModel.input_modalities
    return any(each != default for each in ([taken] if isinstance(taken, str) else taken))


def default_cache(model: PreTrainedModel, inputs: Mapping[str, inspect.Parameter]) -> DynamicCache | None:
    """The cache that generate() makes for a model whose forward takes `inputs`; None where the model makes its own."""
    takes_one = takes_cache(inputs) and model._supports_default_dynamic_cache()
    return DynamicCache(config=model.config.get_text_config(decoder=True)) if takes_one else None


def prepare_inputs(model: PreTrainedModel, input_ids: Tensor, length: int, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward's keyword inputs for the last `length` columns of `input_ids` `[B, L]`, as generate() prepares them."""
    return model.prepare_inputs_for_generation(
        input_ids, next_sequence_length=length, is_first_iteration=True, **inputs
    )


def takes_positions(model: PreTrainedModel, input_ids: Tensor, inputs: Mapping[str, Any]) -> bool:
    """Whether the `position_ids` among generate()'s keyword inputs for a prompt reach the model's forward.

    Some types leave them out when they prepare a forward's inputs, and count for themselves (EXAONE 4.5, Kosmos-2.5).
    """
    if is_stocks(model, PREPARE_INPUTS) and PREPARE_INPUTS not in vars(model):
        return True
    return prepare_inputs(model, input_ids, input_ids.shape[1], inputs).get("position_ids") is not None


@contextmanager
def notes_undone(model: PreTrainedModel, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it generate() may write its notes to a model and its `modules`; at the end they are as before."""
    places = [(module, _SHIFT) for module in modules if hasattr(module, _SHIFT)]
    places += [(model, name) for name in _NOTES]
    before = [getattr(module, name, places) for module, name in places]
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            if value is not places:
                setattr(module, name, value)
            elif hasattr(module, name):
                delattr(module, name)


def unencoded(model: PreTrainedModel, inputs: Tensor, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The `model_kwargs` of generate() after it has encoded a call's `inputs`, with nothing in place of codes."""
    if model.config.is_encoder_decoder:
        if model_kwargs.get(ENCODER_OUTPUTS) is None:
            model_kwargs[ENCODER_OUTPUTS] = BaseModelOutput(torch.zeros(len(inputs), 1, 1, device=inputs.device))
        return model_kwargs
    kinds = [kind for kind in ("image", "video") if kind in model.input_modalities]
    if not kinds or _ENCODED not in inspect.signature(model.forward).parameters:
        return model_kwargs
    encoded, taken = model_kwargs.setdefault(_ENCODED, {}), set()
    for kind in kinds:
        encode = getattr(model.base_model, f"get_{kind}_features", None)
        given = set() if encode is None else model_kwargs.keys() & inspect.signature(encode).parameters.keys()
        if given & _IMAGES:
            encoded[kind] = BaseModelOutput()
        taken |= given
    return {name: value for name, value in model_kwargs.items() if name not in taken}


def new_tokens(config: GenerationConfig, columns: int) -> int:
    """The most tokens that a call may make for a row, after a prompt of `columns` columns; at least 1.

    `config`: the configuration as generate() has resolved it.
    """
    return max((config.max_length or 0) - columns, 1)


def build(kind: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of a class and a configuration, with random weights."""
    return kind._from_config(config, dtype=dtype)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of a model's decoder."""
    return model.config.get_text_config(decoder=True)


def is_generating(model: object) -> bool:
    """Whether an object is a Transformers model that generates text."""
    return isinstance(model, PreTrainedModel) and isinstance(model, GenerationMixin) and model.can_generate()


def is_bidirectional(config: PreTrainedConfig) -> bool:
    """Whether a configuration says that attention sees later text tokens too."""
    return getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision")


def checkpoints_gradients(module: nn.Module) -> bool:
    """Whether a module uses gradient checkpointing: it computes its forward again for its backward."""
    return bool(getattr(module, "gradient_checkpointing", False))


def reusing_layers(config: PreTrainedConfig) -> frozenset[int]:
    """The layers that attend to another layer's keys and values."""
    modes = getattr(config, "kv_sharing_modes", None)  # since 5.23
    if modes is not None:
        return frozenset(index for index, mode in enumerate(modes) if mode == "reuse")
    # Before, the last layers of the Gemma families were the only ones, and had no place in a cache.
    count = getattr(config, "num_kv_shared_layers", None) or 0
    return frozenset(range(config.num_hidden_layers - count, config.num_hidden_layers)) if count else frozenset()


def looped_layers(config: PreTrainedConfig) -> tuple[int, ...]:
    """The layers that run again with keys and values of their own each time: once for each repetition, in order.

    The model appends a layer to its cache for each repetition, behind those that `num_hidden_layers` counts, unless the
    cache has it already.
    """
    if getattr(config, "recurrent_kv_cache_mode", None) == "per_loop":  # Dory
        first, count, passes = config.n_input_layers, config.n_recurrent_layers, config.n_recurrent_loops
        return tuple(range(first, first + count)) * (passes - 1)
    passes = getattr(config, "loop_num_passes", None)  # Inkling 2 Loop
    if passes is not None:
        return tuple(range(config.loop_layer_index_start, config.loop_layer_index_end)) * (passes - 1)
    return ()


def context_length(config: PreTrainedConfig) -> int | None:
    """The most tokens that a decoder's positions are made for, or None."""
    return getattr(config, _CONTEXT, None)


def rope_limit(config: object) -> int | None:
    """Length (tokens) from which a configuration's RoPE has other frequencies, or None if they never change."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return None
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    limits: list[int | None] = []
    for rope in nested or [parameters]:
        kind = str(rope.get("rope_type"))
        if kind in _LENGTH_DEPENDENT_ROPE or "dynamic" in kind:  # Transformers goes by the word, for a user's kinds too
            limits.append(rope.get(_ORIGINAL_CONTEXT))
            limits += [getattr(config, name, None) for name in (_ORIGINAL_CONTEXT, _CONTEXT)]
    return min((limit for limit in limits if limit is not None), default=None)
