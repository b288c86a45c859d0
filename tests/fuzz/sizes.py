"""Which model types there are, and the sizes that each is built in: a few overrides of the tiny model, by number."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.sizes import SIZES, UNBUILDABLE

COUNT = 5  # sizes of each type; number 0 is the tiny model as it stands

_HEADS = ((4, 2), (4, 4), (4, 1), (2, 1), (2, 2), (8, 2))
_WINDOWS = (2, 3, 5, 8, 12, 20, 40)
_SWITCHES = ("tie_word_embeddings", "attention_bias", "use_bias", "conv_bias", "mamba_proj_bias", "add_bias_linear")
_WINDOWED_OR_NOT = {"sliding_attention", "full_attention"}
_ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 64},
}


def model_types() -> tuple[str, ...]:
    """All types that a tiny model can be asked for, in alphabetical order."""
    return tuple(sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(UNBUILDABLE)))


def draw_type(rng: random.Random, types: Sequence[str]) -> str:
    """One of `types`. Most of those that look as if they weren't relayed are drawn again: a few show that they pass."""
    drawn = rng.choice(types)
    for _ in range(3):
        if rng.random() < 0.15 or _is_plain(drawn):
            return drawn
        drawn = rng.choice(types)
    return drawn


@cache
def _is_plain(model_type: str) -> bool:
    """Whether attention goes through Transformers' interface, and the cache holds keys and values."""
    try:
        if not _model_class(model_type)._supports_attention_backend:
            return False
        layers = DynamicCache(config=_default_config(model_type).get_text_config(decoder=True)).layers
    except Exception:  # the type is left out, with the reason, when a case asks for its model
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


@cache
def _model_class(model_type: str) -> type[PreTrainedModel]:
    return MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]


@cache
def _default_config(model_type: str) -> PreTrainedConfig:
    return _model_class(model_type).config_class()


def overrides(model_type: str, number: int) -> dict[str, Any]:
    """What size `number` of a type changes. Not every type takes all of it; see `models.build`."""
    if number == 0:
        return {}
    rng = random.Random(f"{model_type}/{number}")
    config = _default_config(model_type)
    changed: dict[str, Any] = {}
    if rng.random() < 0.25:
        changed["attn_implementation"] = "eager"
    if "text_config" in config.sub_configs:
        before = SIZES.get(model_type, {}).get("text_config", {})
        return {**changed, "text_config": {**before, **_changed(rng, config.get_text_config())}}
    return {**changed, **_changed(rng, config)}


def _changed(rng: random.Random, config: PreTrainedConfig) -> dict[str, Any]:
    layers = rng.choice((1, 1, 2, 2, 2, 3))
    changed: dict[str, Any] = {"num_hidden_layers": layers}
    kinds = set((config.layer_types if _has(config, "layer_types") else None) or ())
    if kinds and kinds <= _WINDOWED_OR_NOT:
        changed["layer_types"] = [rng.choice(sorted(kinds)) for _ in range(layers)]
    _attention(rng, config, changed)
    _window(rng, config, changed)
    if rng.random() < 0.4:
        _rope(rng, config, changed)
    for name in _SWITCHES:
        if _has(config, name):
            changed[name] = rng.choice((True, False))
    return changed


def _has(config: PreTrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # what may differ between layers is not to be had from the whole
        return False


def _attention(rng: random.Random, config: PreTrainedConfig, changed: dict[str, Any]) -> None:
    heads, kv_heads = rng.choice(_HEADS)
    latent = _has(config, "kv_lora_rank")  # MLA: as many KV heads, and sizes by other names
    changed["num_attention_heads"] = heads
    if _has(config, "num_key_value_heads"):
        changed["num_key_value_heads"] = heads if latent else kv_heads
    if _has(config, "head_dim") and not latent:
        changed["head_dim"] = rng.choice((4, 8, 16, 24))
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if _has(config, name) and getattr(config, name) is not None:
            changed[name] = rng.choice((0.5, 2.0, 30.0))


def _window(rng: random.Random, config: PreTrainedConfig, changed: dict[str, Any]) -> None:
    if not _has(config, "sliding_window"):
        return
    changed["sliding_window"] = rng.choice(_WINDOWS)
    if _has(config, "use_sliding_window"):
        changed["use_sliding_window"] = rng.random() < 0.7
        if _has(config, "max_window_layers"):
            changed["max_window_layers"] = rng.choice((0, 1))
    elif rng.random() < 0.25:
        changed["sliding_window"] = None


def _rope(rng: random.Random, config: PreTrainedConfig, changed: dict[str, Any]) -> None:
    default = config.rope_parameters if _has(config, "rope_parameters") else None
    if not isinstance(default, dict) or "rope_theta" not in default:
        return
    kind = rng.choice(sorted(_ROPES))
    rope = {**default, "rope_type": kind, **_ROPES[kind]}
    if kind == "dynamic":
        changed["max_position_embeddings"] = rng.choice((24, 64, 512))
    if kind == "longrope":
        size = changed.get("head_dim") or 32 // changed["num_attention_heads"]
        pairs = int(size * default.get("partial_rotary_factor", 1.0)) // 2
        rope["short_factor"] = [round(rng.uniform(1, 2), 2) for _ in range(pairs)]
        rope["long_factor"] = [round(rng.uniform(2, 4), 2) for _ in range(pairs)]
        changed["original_max_position_embeddings"] = 64
    changed["rope_parameters"] = rope
