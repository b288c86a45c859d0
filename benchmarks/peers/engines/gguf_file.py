"""A Llama of Transformers as a GGUF file, which llama.cpp reads: without a tokenizer, because jobs are token ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_AROUND = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_KINDS = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write(weights: Mapping[str, NDArray], shape: Mapping[str, int], path: Path, dtype: str = "float32") -> None:
    """Write the file.

    Args:
        weights: float32, by Transformers' names.
        shape: the fields of a `ModelShape`.
        path: of the file.
        dtype: float32, bfloat16, float16 or Q8_0, of the matrices; vectors are in float32.
    """
    matrices, file_type = _KINDS[dtype]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    writer.add_context_length(16384)
    writer.add_embedding_length(shape["hidden"])
    writer.add_feed_forward_length(shape["intermediate"])
    writer.add_block_count(shape["layers"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_dimension_count(shape["hidden"] // shape["heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)  # Transformers' default, as is the base of the rotation
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("no_vocab")
    for name, weight in weights.items():
        kind = matrices if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        own = gguf.quants.quantize(_rotated(name, weight, shape), kind)
        writer.add_tensor(name_of(name), own, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def name_of(name: str) -> str:
    """The name of a weight in the file, such as `blk.0.attn_q.weight`."""
    stem = name.removesuffix(".weight")
    if stem in _AROUND:
        return f"{_AROUND[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER[inner]}.weight"


def _rotated(name: str, weight: NDArray, shape: Mapping[str, int]) -> NDArray:
    """Rows of queries and keys in llama.cpp's order: it rotates neighbours, Transformers the two halves of a head."""
    for part, heads in (("q_proj", shape["heads"]), ("k_proj", shape["kv_heads"])):
        if f".{part}." in name:
            halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
    return weight
