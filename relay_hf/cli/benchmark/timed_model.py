"""The model that is timed: a Llama of random weights and a given shape, or a model of the Hub or a folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from relay_hf.showcase import path_of


@dataclass(frozen=True)
class ModelShape:
    """A Llama of random weights: widths, layers, heads, tokens in the vocabulary."""

    hidden: int = 768
    intermediate: int = 2048
    layers: int = 12
    heads: int = 12
    kv_heads: int = 12
    vocab: int = 32000

    @property
    def about(self) -> str:
        """What it is, in a few words."""
        return f"a Llama of random weights, {self.layers} layers of width {self.hidden}"

    def build(self) -> LlamaForCausalLM:
        """The model, the same at every call, that never ends a sequence by itself."""
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocab,
            max_position_embeddings=16384,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
        return LlamaForCausalLM(config).eval()


SMALL_MODEL = ModelShape(512, 1376, 8, 8, 8)


@dataclass(frozen=True)
class NamedModel:
    """A model of the Hub or of a folder, or the demo's: its name, tokens in its vocabulary."""

    name: str
    vocab: int

    @classmethod
    def of(cls, name: str) -> NamedModel:
        """Look its vocabulary up.

        Raises:
            OSError, ValueError: Transformers finds no such model, or it is no language model.
        """
        config = AutoConfig.from_pretrained(path_of(name))
        return cls(name, config.get_text_config(decoder=True).vocab_size)

    @property
    def about(self) -> str:
        """What it is, in a few words."""
        return self.name

    def build(self) -> PreTrainedModel:
        """The model in float32. It never ends a sequence by itself, and samples only where it is asked to."""
        model = AutoModelForCausalLM.from_pretrained(path_of(self.name), dtype=torch.float32)
        model.generation_config = GenerationConfig(pad_token_id=0)
        return model.eval()
