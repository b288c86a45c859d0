"""The workloads that claims name: the model's shape, the rows, the tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)


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
class NamedModel:
    """A model of the Hub or of a folder: its name, tokens in its vocabulary."""

    name: str
    vocab: int

    @classmethod
    def of(cls, name: str) -> NamedModel:
        """Look its vocabulary up.

        Raises:
            OSError, ValueError: Transformers finds no such model, or it is no language model.
        """
        return cls(name, AutoConfig.from_pretrained(name).get_text_config(decoder=True).vocab_size)

    def build(self) -> PreTrainedModel:
        """The model in float32, made to never end a sequence by itself and to sample as the workload says."""
        model = AutoModelForCausalLM.from_pretrained(self.name, dtype=torch.float32)
        model.generation_config = GenerationConfig(pad_token_id=0)
        return model.eval()


@dataclass(frozen=True)
class Workload:
    """A batch of random tokens, `new` to be generated for each row.

    Attributes:
        model: the model's shape, or its name.
        rows: prompts.
        prefix: tokens that all of them start with.
        own: tokens that each ends with.
        new: tokens to be generated.
        options: further arguments of generate(): sampling, beams, return sequences.
        later: what groups of prompts share between the two, level by level: tokens, and number of groups.
        about: what it stands for.
    """

    model: ModelShape | NamedModel
    rows: int
    prefix: int
    own: int
    new: int
    options: dict[str, Any] = field(default_factory=dict)
    later: tuple[tuple[int, int], ...] = ()
    about: str = ""

    def __post_init__(self) -> None:
        for tokens, groups in self.later:
            if self.rows % groups:
                raise ValueError(
                    f"rows must be a multiple of {groups}, the groups that share {tokens} tokens each; got {self.rows}."
                )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """What is shared, level by level: tokens, and number of groups."""
        return ((self.prefix, 1), *self.later) if self.prefix else self.later

    @property
    def shared(self) -> int:
        """Tokens of a prompt before its own."""
        return sum(tokens for tokens, _ in self.levels)

    @property
    def answers(self) -> int:
        """Rows that the model runs for each prompt."""
        return self.options.get("num_return_sequences") or self.options.get("num_beams") or 1

    def prompts(self, draw: int = 0) -> Tensor:
        """Token ids `[rows, shared + own]`: what is shared is the same in every draw, the own tokens are not."""
        parts = [
            _random_ids(self.model.vocab, (groups, tokens), seed=1 + level).repeat_interleave(
                self.rows // groups, dim=0
            )
            for level, (tokens, groups) in enumerate(self.levels)
        ]
        own = _random_ids(self.model.vocab, (self.rows, self.own), seed=1000 + draw)
        return torch.cat([*parts, own], dim=1)


def _random_ids(vocab: int, shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randint(1, vocab, shape, generator=torch.Generator().manual_seed(seed))


C1_MODEL = ModelShape()
_SMALL_MODEL = ModelShape(512, 1376, 8, 8, 8)
_SMOKE_MODEL = ModelShape(64, 128, 2, 4, 4, 256)


def _samples(count: int) -> dict[str, Any]:
    return {"do_sample": True, "num_return_sequences": count}


WORKLOADS = {
    "C1": Workload(C1_MODEL, 16, 1024, 32, 32, about="one system prompt, many questions"),
    "C2": Workload(ModelShape(kv_heads=4), 16, 1024, 32, 128, about="the same with grouped queries, longer answers"),
    "C3": Workload(C1_MODEL, 1, 1055, 1, 32, _samples(16), about="16 samples of one prompt"),
    "C4": Workload(C1_MODEL, 2, 0, 1, 32, {"num_beams": 8}, ((1055, 2),), about="8 beams of each of two prompts"),
    "C5": Workload(C1_MODEL, 16, 512, 32, 32, later=((256, 4),), about="a system prompt, then one of four documents"),
    "C6": Workload(C1_MODEL, 8, 0, 128, 32, about="nothing shared: what a patched model costs then"),
    "small": Workload(_SMALL_MODEL, 1, 699, 1, 24, _samples(12), about="12 samples of one prompt, a smaller model"),
    "smoke": Workload(_SMOKE_MODEL, 4, 48, 8, 4, about="a tiny model: does the benchmark run? seconds mean nothing"),
    "smoke-tree": Workload(_SMOKE_MODEL, 4, 48, 8, 4, later=((24, 2),), about="the same with two levels"),
}
