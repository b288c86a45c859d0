"""What the tests of saved prefixes share: a model that keeps a prefix, its twin, and a prompt that starts with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

PREFIX = 20
ROWS = prompts(PREFIX, (3, 7, 2))
IDS = ROWS["input_ids"][1, :PREFIX]


def patched(model_type: str = "llama", seed: int = 0, **options: Any) -> PreTrainedModel:
    """A tiny model of a seed, that relays wherever it is exact."""
    return relay_hf.patch_model(tiny_model(model_type, seed=seed, **options), policy="always")


def saved(path: Path, model_type: str = "llama", **options: Any) -> PreTrainedModel:
    """A model whose kept prefix has been written to `path`."""
    model = patched(model_type, **options)
    model.relay.warm(IDS)
    model.relay.save(path)
    return model


def assert_served(model: PreTrainedModel, expected: torch.Tensor) -> None:
    """The prefix comes from what is kept, and the tokens are those that are expected."""
    found = generate(model, ROWS)
    assert model.relay.last.relayed, model.relay.last
    assert model.relay.last.prefix_tokens_reused == PREFIX
    assert torch.equal(found, expected)
