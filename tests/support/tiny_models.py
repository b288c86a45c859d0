"""Builds a tiny model of any type that Transformers has a causal language model for, with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from relay_hf.model.upstream.models import build
from tests.support.sizes import GENERIC, SIZES, WIDTH


def tiny_model(model_type: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of a Transformers model type in float32 and eval mode, on the CPU, of two layers or a few more.

    It has layers of each kind that the type's default configuration has.

    Args:
        model_type: a key of Transformers' mapping of causal language models that `UNBUILDABLE` does not name.
        seed: of the weights: one seed, one set of weights.
        overrides: fields of the configuration. One that is itself a configuration is given as a dictionary, in place
            of its row in `SIZES`.
    """
    return _tiny(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]], model_type, seed, overrides)


def tiny_multimodal_model(model_type: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """`tiny_model` of a type of Transformers' mapping of models that take images, video or audio beside text."""
    return _tiny(MODEL_FOR_MULTIMODAL_LM_MAPPING[CONFIG_MAPPING[model_type]], model_type, seed, overrides)


def _tiny(
    model_class: type[PreTrainedModel], model_type: str, seed: int, overrides: Mapping[str, Any]
) -> PreTrainedModel:
    # Where the class is the text part of a composite type, its configuration is that part's.
    config = _tiny_config(model_class.config_class, {**SIZES.get(model_type, {}), **overrides})
    torch.manual_seed(seed)
    model = build(model_class, config, torch.float32)
    _widen(model, torch.Generator().manual_seed(seed))
    # The default, which MusicGen's own generate() does not know.
    model.generation_config.num_return_sequences = 1
    return model.eval()


def _tiny_config(config_class: type[PreTrainedConfig], sizes: Mapping[str, Any]) -> PreTrainedConfig:
    """The default configuration of a class, cut to the generic sizes and to `sizes`, which win."""
    default = config_class()
    fields = [field.name for field in dataclasses.fields(config_class)]
    # A size may be given by the name that all types share, as num_hidden_layers for GPT-2's n_layer.
    sizes = {name if name in fields else config_class.attribute_map.get(name, name): sizes[name] for name in sizes}
    values = {name: GENERIC[name] for name in fields if name in GENERIC}
    values.update(_layer_kinds(default, fields, sizes.get("num_hidden_layers")))
    values.update(sizes)
    for name in config_class.sub_configs:
        part = getattr(default, name)
        if part is not None:
            values[name] = _tiny_config(type(part), sizes.get(name, {}))
    return config_class(**values)


def _layer_kinds(default: PreTrainedConfig, fields: list[str], layers: int | None) -> dict[str, Any]:
    """The lists that name the kind of each layer (of its attention, of its feed-forward ...), for a few layers.

    Args:
        default: the default configuration, of many layers.
        fields: the names of its class's fields.
        layers: the number of layers asked for; None for as many as show each kind twice.

    Returns:
        The lists and the number of layers, by field; nothing for a class without such lists.
    """
    depth: int = getattr(default, "num_hidden_layers", 0)
    # Not getattr: it refuses what may differ between layers.
    values = {name: vars(default).get(default.attribute_map.get(name, name)) for name in fields}
    lists = {name: value for name, value in values.items() if _names_kinds(value, depth)}
    if not lists:
        return {}
    # A layer of the tiny model is of the kinds of one of the default's layers: those first to be of some kind.
    first = [i for i in range(depth) if any(kinds[i] not in kinds[:i] for kinds in lists.values())]
    # Each kind twice: what the last layer does wrong to the tokens of a prompt is never read again.
    first = first * 2 if len(first) > 1 else [0, 1]
    layers = layers or len(first)
    chosen = [first[i % len(first)] for i in range(layers)]
    return {"num_hidden_layers": layers, **{name: [kinds[i] for i in chosen] for name, kinds in lists.items()}}


def _names_kinds(value: Any, depth: int) -> bool:
    """Whether a configuration's value is a list of one name for each of its layers."""
    return isinstance(value, list | tuple) and 0 < len(value) == depth and all(isinstance(kind, str) for kind in value)


def _widen(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Adds noise to what a model's class makes constant or nearly so, whatever its configuration says.

    Biases, attention sinks and relative positions that are zero, and norms that are one, would hide that they are left
    out; a padding token of zeros, that it is attended to. And some classes give their matrices a spread of their own,
    in which attention is all but uniform.
    """
    constant = [p for p in model.parameters() if p.is_floating_point() and p.std(correction=0) < WIDTH / 2]
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None]
    with torch.no_grad():
        for part in [*constant, *(embedding.weight[embedding.padding_idx] for embedding in embeddings)]:
            part += WIDTH * torch.randn(part.shape, generator=generator)
