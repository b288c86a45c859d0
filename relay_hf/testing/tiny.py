"""A Llama of 22,000 random weights, in which a mistake shows: attention is far from uniform, and no norm is one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .prompts import PAD, VOCABULARY

# The spread of the weights, ten times wider than the default: a wrong mask, position or merge moves the logits
# by 0.1 and more (with the default of 0.02 it moves them by 1e-4).
WIDTH = 0.2


def tiny_model(model_type: str = "llama", seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A model in float32 and eval mode, on the CPU, of two layers.

    Args:
        model_type: "llama", the one type that there is.
        seed: of the weights: one seed, one set of weights.
        overrides: fields of the configuration.

    Raises:
        ValueError: `model_type` is another one.
    """
    if model_type != "llama":
        raise ValueError(f"model_type must be 'llama'; got {model_type!r}. Build others from their configuration.")
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": WIDTH,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": torch.float32,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **overrides}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # What is constant would hide that it is left out: norms that are one, and a padding token of zeros.
        constant = [parameter for parameter in model.parameters() if parameter.std(correction=0) < WIDTH / 2]
        for part in [*constant, model.get_input_embeddings().weight[PAD]]:
            part += WIDTH * torch.randn(part.shape, generator=generator, device="cpu").to(part.device)
    return model.eval()
