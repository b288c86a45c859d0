"""Tokens and logits of a call, row by row, and how far stock's own are from those in float64."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import torch
from hypothesis import Phase, settings

from tests.support.tiny_models import tiny_model

from .batches import Batch

FAMILIES = ["llama", "mistral", "gpt_oss", "gptj", "bamba"]
NEW_TOKENS = 5
# The same examples at each run, as they come: batches are small, and shrinking one takes minutes.
SETTINGS = settings(
    deadline=None, max_examples=20, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
# Of stock's error against float64. Two calls are compared, and each may be as far off as stock's twice over: parts of
# attention, that depend on the tree, are rounded one by one.
FACTOR = 4


@cache
def stock(family: str) -> Any:
    return tiny_model(family, max_position_embeddings=96)


def run(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens, `[B, n]`, and their logits, `[B, n, V]`."""
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "use_cache": True}
    out = model.generate(**batch.inputs(), **options, output_logits=True, return_dict_in_generate=True)
    return out.sequences[:, -NEW_TOKENS:], torch.stack(out.logits, dim=1)


@cache
def tolerance(family: str) -> float:
    """What a row's logits may differ by: `FACTOR` times what stock's are off at most, in 10 batches."""
    exact = copy.deepcopy(stock(family)).double()
    exact.set_experts_implementation("eager")  # the grouped product of the other has no float64
    rng = random.Random(0)
    errors = []
    for padding in range(10):
        own = tuple(tuple(rng.randint(3, 6) for _ in range(rng.randint(1, 8))) for _ in range(3))
        batch = Batch(shared=(tuple(rng.randint(3, 6) for _ in range(20)),) * 3, own=own, padding=padding)
        errors.append(run(stock(family), batch)[1][:, 0] - run(exact, batch)[1][:, 0])
    return FACTOR * float(torch.cat(errors).abs().max())
