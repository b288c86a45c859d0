"""What is timed of prompts of a file: the same rows in each round, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from relay_hf.model.upstream.names import CACHE

from ..prompts import padded
from .bench import Bench
from .workload import FileWorkload


class FileBench(Bench):
    """A bench of given prompts; `prompt_ids`: the ids of each, `[n]`."""

    def __init__(
        self, workload: FileWorkload, policy: str, prompt_ids: Sequence[Tensor], model: PreTrainedModel | None = None
    ) -> None:
        self._prompt_ids = prompt_ids
        super().__init__(workload, policy, model)

    @property
    def prefix(self) -> Tensor:
        """Token ids of what all prompts start with, `[1, tokens]`."""
        return self._prompt_ids[0][None, : self.workload.prefix].to(self.model.device)

    def draw(self, draw: int) -> None:
        """Take the prompts, which are the same in each draw."""
        self.prompts, self._mask = (each.to(self.model.device) for each in padded(self._prompt_ids))

    def generate(self, model: PreTrainedModel, prompts: Tensor, **options: Any) -> Tensor:
        """As a `Bench` does, with the mask of the first rows and last columns, as many as `prompts` has."""
        mask = self._mask[: len(prompts), -prompts.shape[1] :]
        return super().generate(model, prompts, **{"attention_mask": mask, **options})

    def generate_behind(self, cache: DynamicCache) -> Tensor:
        """As a `Bench` does; padding stands between the prefix and what a row has of its own."""
        prefix = self.prefix.expand(self.rows, -1)
        own, mask = (each.to(prefix.device) for each in padded([row[prefix.shape[1] :] for row in self._prompt_ids]))
        ids, mask = torch.cat([prefix, own], dim=1), torch.cat([torch.ones_like(prefix), mask], dim=1)
        return self.generate(self.model, ids, **{CACHE: cache, "attention_mask": mask})
