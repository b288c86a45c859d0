"""What is measured: tiny models of ten families, and the batch that they are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STEPS = 8  # tokens that are forced after the prompt, so that all contenders are asked for the same logits

_OWN = tuple(1 + 7 * row % 19 for row in range(32))


@dataclass(frozen=True)
class Subject:
    """A family, its sizes, and how many seeds of weights and prompts it takes for a steady ratio.

    Attributes:
        name: as the table has it.
        family: Transformers model type.
        seeds: of a full run.
        overrides: of the tiny model's configuration.
        prefix: tokens that the rows share.
        own: tokens of each row's own.
        routed: whether rounding can change which experts a router chooses.
    """

    name: str
    family: str
    seeds: int = 32
    overrides: dict[str, Any] = field(default_factory=dict)
    prefix: int = 60
    own: tuple[int, ...] = _OWN
    routed: bool = False


_DENSE = ("llama", "mistral", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox")
# By the family's name for how many experts a token gets of its four.
_ROUTED = {"mixtral": "num_experts_per_tok", "gpt_oss": "num_experts_per_tok", "deepseek_v3": "num_experts_per_tok"}
_EVERY = ", every expert"

_WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "initializer_range": 0.1,
    "vocab_size": 997,
    "max_position_embeddings": 1024,
}

SUBJECTS = (
    *(Subject(name, name) for name in _DENSE),
    *(Subject(name + _EVERY, name, overrides={option: 4}) for name, option in _ROUTED.items()),
    Subject("llama, 256 wide, 6 layers", "llama", 6, _WIDE, prefix=500, own=_OWN[:16]),
    *(Subject(name, name, seeds=400, routed=True) for name in _ROUTED),
)
# What a run of half a minute can tell: where experts are chosen, chance decides a few seeds.
SMALL = tuple(subject for subject in SUBJECTS if not subject.routed and subject.seeds == Subject.seeds)
SMALL_SEEDS = 4
