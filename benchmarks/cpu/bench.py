"""What is timed of a named workload: besides its models and prompts, each level of what the prompts share."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from relay_hf.cli.benchmark.bench import Bench, patched_twin

from .workloads import NamedWorkload


class TreeBench(Bench):
    """A bench whose prompts may share several levels, and get samples or beams."""

    workload: NamedWorkload

    @cached_property
    def first_level_twin(self) -> PreTrainedModel:
        """Another twin: all that rows share behind the first level is too short for it to be a prefix."""
        return patched_twin(self.model, policy=self.policy, min_prefix_length=self.workload.prefix)

    @property
    def rows(self) -> int:
        """Rows that the model runs."""
        return self.workload.rows * self.workload.answers

    @property
    def prefix(self) -> Tensor:
        """Token ids of the first level."""
        return self.level(0)

    def level(self, number: int) -> Tensor:
        """Token ids of what is shared at a level, a row for each group that shares it: `[groups, tokens]`."""
        tokens, groups = self.workload.levels[number]
        start = sum(before for before, _ in self.workload.levels[:number])
        return self.prompts[:: self.workload.rows // groups, start : start + tokens]

    def generate(self, model: PreTrainedModel, prompts: Tensor, **options: Any) -> Tensor:
        """As a `Bench` does, with samples or beams as the workload has them."""
        return super().generate(model, prompts, **{**self.workload.options, **options})
