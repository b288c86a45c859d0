"""The bench: a stock model with the prompts of a workload, and a patched twin that shares the model's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import relay_hf
from relay_hf.model.upstream.names import CACHE

from .workload import Workload


def patched_twin(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """A patched model that shares the weights of a stock one, which stays as it is; `options`: of `patch_model`."""
    shared_weights = {id(parameter): parameter for parameter in model.parameters()}
    return relay_hf.patch_model(copy.deepcopy(model, shared_weights), **options)


class Bench:
    """A workload with its stock model and the patched twin.

    Attributes:
        workload: what is timed.
        policy: of the twin.
        model: the stock model.
        twin: the patched model.
        prompts: token ids `[prompts, tokens]` of the round.
    """

    def __init__(self, workload: Workload, policy: str, model: PreTrainedModel | None = None) -> None:
        self.workload = workload
        self.policy = policy
        self.model = model or workload.model.build()
        self.twin = patched_twin(self.model, policy=policy)
        self.draw(0)

    @property
    def rows(self) -> int:
        """Rows that the model runs."""
        return self.workload.rows

    @property
    def prefix(self) -> Tensor:
        """Token ids of what the prompts start with, a row for each group that shares it: `[groups, tokens]`."""
        return self.prompts[:1, : self.workload.prefix]

    def draw(self, draw: int) -> None:
        """Take other own tokens."""
        self.prompts = self.workload.prompts(draw).to(self.model.device)

    def generate(self, model: PreTrainedModel, prompts: Tensor, **options: Any) -> Tensor:
        """The new tokens `[rows, new]` of a generate() whose token count is forced."""
        torch.manual_seed(0)
        count = {"min_new_tokens": self.workload.new, "max_new_tokens": self.workload.new}
        output = model.generate(prompts, **count, **{"do_sample": False, **options})
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)  # the call is over when the device is done
        return output[:, prompts.shape[1] :]

    def generate_behind(self, cache: DynamicCache) -> Tensor:
        """As `generate()` of the stock model, where `cache` holds the start of each row."""
        return self.generate(self.model, self.prompts, **{CACHE: cache})

    def prefill(self, ids: Tensor) -> DynamicCache:
        """The stock model's KV of `[rows, tokens]` ids, as if nothing were before them."""
        cache = DynamicCache(config=self.model.config)
        with torch.no_grad():
            self.model(ids, **{CACHE: cache}, logits_to_keep=1)
        return cache
