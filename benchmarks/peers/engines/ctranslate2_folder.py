"""A Llama of Transformers as a model folder of CTranslate2, by its specification: tokens are named by their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ctranslate2.specs import TransformerDecoderModelSpec, common_spec
from numpy.typing import NDArray


def write(weights: Mapping[str, NDArray], shape: Mapping[str, int], folder: Path) -> None:
    """Write the folder.

    Args:
        weights: float32, by Transformers' names.
        shape: the fields of a `ModelShape`.
        folder: is made.
    """
    spec = TransformerDecoderModelSpec.from_config(
        shape["layers"],
        shape["heads"],
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,  # all of a head
        rotary_interleave=False,
        num_heads_kv=shape["kv_heads"],
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = weights["model.embed_tokens.weight"]
    decoder.layer_norm.gamma = weights["model.norm.weight"]
    decoder.projection.weight = weights["lm_head.weight"]
    for number, layer in enumerate(decoder.layer):

        def of(name: str, at: str = f"model.layers.{number}") -> NDArray:
            return weights[f"{at}.{name}.weight"]

        attention, ffn = layer.self_attention, layer.ffn
        attention.layer_norm.gamma, ffn.layer_norm.gamma = of("input_layernorm"), of("post_attention_layernorm")
        attention.linear[0].weight = np.concatenate([of(f"self_attn.{name}_proj") for name in "qkv"])
        attention.linear[1].weight = of("self_attn.o_proj")
        ffn.linear_0.weight, ffn.linear_0_noact.weight = of("mlp.gate_proj"), of("mlp.up_proj")
        ffn.linear_1.weight = of("mlp.down_proj")
    spec.register_vocabulary([str(token) for token in range(shape["vocab"])])
    config = spec.config
    config.unk_token = config.bos_token = config.eos_token = "0"  # a vocabulary must have them
    config.layer_norm_epsilon = 1e-6  # Transformers' default
    spec.validate()
    spec.optimize(quantization=None)
    folder.mkdir()
    spec.save(str(folder))
