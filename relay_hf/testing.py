"""Tiny models and prompts for tests and examples: one row a family, made from its configuration, random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
PAD = 0

# Weights ten times wider than Transformers' default: attention is far from uniform, so that a wrong mask, position or
# merge moves the logits by 0.1 and more (with the default of 0.02 it moves them by 1e-4).
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# What a family has on top. A window is shorter than the tests' prompts, so that they generate past it.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 12},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 12,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 0.5,  # low enough to bend the scores of such small heads
        # Transformers before 5.23 chooses sdpa for it, which leaves the softcap out.
        "attn_implementation": "eager",
    },
    "gemma3_text": {"head_dim": 16, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": None},
    "gpt2": {"n_inner": 48, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": {"rotary_pct": 0.5},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "olmo2": {},
    "gpt_oss": {"head_dim": 16, "sliding_window": 12, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
    },
    "starcoder2": {"sliding_window": 12, "residual_dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0},
}


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A two-layer model of a family (a Transformers model type) in float32 and eval mode, on the CPU."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_COMMON, **FAMILIES[family], **overrides})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def prompts(prefix: int, own: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """Rows that share `prefix` tokens and go on for `own[b]` of their own, left-padded to one width.

    Returns:
        `input_ids` and `attention_mask`, `[len(own), prefix + max(own)]`, as a tokenizer gives them.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(3, VOCABULARY, (prefix,), generator=generator)
    width = prefix + max(own)
    input_ids = torch.full((len(own), width), PAD)
    attention_mask = torch.zeros(len(own), width, dtype=torch.int64)
    for row, length in enumerate(own):
        rest = torch.randint(3, VOCABULARY, (length,), generator=generator)
        if length:
            rest[0] = 3 + row % (VOCABULARY - 3)  # rows part exactly after the prefix
        input_ids[row, width - prefix - length :] = torch.cat([shared, rest])
        attention_mask[row, width - prefix - length :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
