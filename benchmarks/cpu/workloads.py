"""The workloads that claims name: the model, the prompts, what they share level by level, how they are answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relay_hf.cli.benchmark.timed_model import SMALL_MODEL, ModelShape
from relay_hf.cli.benchmark.workload import Workload, random_ids


@dataclass(frozen=True)
class NamedWorkload(Workload):
    """A batch of random tokens that may be a tree, and whose answers may be samples or beams.

    Attributes:
        options: further arguments of generate(): sampling, beams, return sequences.
        later: what groups of prompts share between the prefix and their own tokens, level by level: tokens, and number
            of groups.
        about: what it stands for.
    """

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

    def shared_ids(self) -> Tensor:
        """What stands before the own tokens, `[rows, shared]`."""
        levels = [
            random_ids(self.model.vocab, (groups, tokens), seed=1 + level).repeat_interleave(self.rows // groups, dim=0)
            for level, (tokens, groups) in enumerate(self.levels)
        ]
        return torch.cat([torch.empty(self.rows, 0, dtype=torch.int64), *levels], dim=1)


C1_MODEL = ModelShape()
_SMOKE_MODEL = ModelShape(64, 128, 2, 4, 4, 256)


def _samples(count: int) -> dict[str, Any]:
    return {"do_sample": True, "num_return_sequences": count}


WORKLOADS = {
    "C1": NamedWorkload(C1_MODEL, 16, 1024, 32, 32, about="one system prompt, many questions"),
    "C2": NamedWorkload(
        ModelShape(kv_heads=4), 16, 1024, 32, 128, about="the same with grouped queries, longer answers"
    ),
    "C3": NamedWorkload(C1_MODEL, 1, 1055, 1, 32, _samples(16), about="16 samples of one prompt"),
    "C4": NamedWorkload(C1_MODEL, 2, 0, 1, 32, {"num_beams": 8}, ((1055, 2),), about="8 beams of each of two prompts"),
    "C5": NamedWorkload(
        C1_MODEL, 16, 512, 32, 32, later=((256, 4),), about="a system prompt, then one of four documents"
    ),
    "C6": NamedWorkload(C1_MODEL, 8, 0, 128, 32, about="nothing shared: what a patched model costs then"),
    "small": NamedWorkload(SMALL_MODEL, 1, 699, 1, 24, _samples(12), about="12 samples of one prompt, a smaller model"),
    "smoke": NamedWorkload(
        _SMOKE_MODEL, 4, 48, 8, 4, about="a tiny model: does the benchmark run? seconds mean nothing"
    ),
    "smoke-tree": NamedWorkload(_SMOKE_MODEL, 4, 48, 8, 4, later=((24, 2),), about="the same with two levels"),
}
