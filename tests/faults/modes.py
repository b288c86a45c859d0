"""Calls of every kind that a fault may come into, and what must hold after it."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache

import relay_hf
from relay_hf.testing import prompts
from tests.support.model_snapshot import members
from tests.support.tiny_models import tiny_model

from .check import Alive, assert_let_go, assert_whole


def tree() -> dict:
    """Four rows that share 20 tokens, and two and two of them 18 more."""
    inputs = prompts(20, (30, 30, 30, 30))
    ids = inputs["input_ids"]
    ids[1, 20:38], ids[3, 20:38] = ids[0, 20:38].clone(), ids[2, 20:38].clone()
    return inputs


# Of each: the model, the inputs, the options, and whether the same call came before.
MODES: dict[str, tuple[str, dict, dict, bool]] = {
    "batch": ("llama", prompts(20, (3, 7, 1, 5)), {}, False),
    "kept prefix": ("llama", prompts(20, (3, 7, 1, 5)), {}, True),
    "one row": ("llama", prompts(20, (5,)), {}, True),
    "levels": ("llama", tree(), {}, False),
    "beams": ("llama", prompts(20, (3, 7)), {"num_beams": 2}, True),
    "samples": ("llama", prompts(20, (3,)), {"do_sample": True, "num_return_sequences": 3}, False),
    "recurrent": ("bamba", prompts(20, (3, 7, 3)), {}, False),
    "own attention code": ("gptj", prompts(20, (3, 7)), {}, False),
}


class Mode:
    """A stock model, a patched one, and a call of both.

    Attributes:
        expected: stock's tokens.
    """

    def __init__(self, name: str) -> None:
        family, self.inputs, self.options, self.kept = MODES[name]
        self.stock = tiny_model(family)
        self.model = relay_hf.patch_model(copy.deepcopy(self.stock), policy="always", trust=["*"])
        self.expected = self.call(self.stock)
        self.prepare()
        self.call(self.model)  # what is made once and stays is made here
        self.model.relay.clear()
        self.before, self.caches = members(self.model), Alive(relay_hf.RelayCache, DynamicCache)

    def call(self, model: Any, **options: Any) -> torch.Tensor:
        """Four tokens."""
        torch.manual_seed(0)
        return model.generate(**{**self.inputs, "max_new_tokens": 4, "min_new_tokens": 4, **self.options, **options})

    def prepare(self) -> None:
        """The store as the call is to find it."""
        self.model.relay.clear()
        if self.kept:
            self.call(self.model)

    def assert_usable(self) -> None:
        """Nothing is held, all that is kept is whole, and the next call is right and relayed."""
        assert_let_go(self.model, self.before, self.caches)
        assert_whole(self.model)
        assert torch.equal(self.call(self.model), self.expected)
        assert self.model.relay.last.relayed, self.model.relay.last


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it nothing is collected, so that what is held in circles shows; what was there before is not looked at."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
