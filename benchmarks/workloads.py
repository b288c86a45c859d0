"""The workloads that claims name: the model's shape, the rows, the tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class ModelShape:
    """A Llama of random weights: widths, layers, heads, tokens in the vocabulary."""

    hidden: int = 768
    intermediate: int = 2048
    layers: int = 12
    heads: int = 12
    kv_heads: int = 12
    vocab: int = 32000

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


@dataclass(frozen=True)
class Workload:
    """A batch of random tokens: `rows` prompts that share `prefix` tokens and have `own` each, `new` to be generated.

    `options` are further arguments of generate(): sampling, beams, return sequences.
    """

    model: ModelShape
    rows: int
    prefix: int
    own: int
    new: int
    options: dict[str, Any] = field(default_factory=dict)

    def prompts(self, draw: int = 0) -> Tensor:
        """Token ids `[rows, prefix + own]`: the prefix is the same in every draw, the own tokens are not."""
        prefix = _random_ids(self.model.vocab, (1, self.prefix), seed=1)
        own = _random_ids(self.model.vocab, (self.rows, self.own), seed=1000 + draw)
        return torch.cat([prefix.expand(self.rows, -1), own], dim=1)


def _random_ids(vocab: int, shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randint(1, vocab, shape, generator=torch.Generator().manual_seed(seed))


C1_MODEL = ModelShape()

WORKLOADS = {
    "smoke": Workload(ModelShape(64, 128, 2, 4, 4, 256), rows=4, prefix=48, own=8, new=4),
    "C1": Workload(C1_MODEL, rows=16, prefix=1024, own=32, new=32),
    "C2": Workload(ModelShape(kv_heads=4), rows=16, prefix=1024, own=32, new=128),
    "C6": Workload(C1_MODEL, rows=8, prefix=0, own=128, new=32),
}
