"""Families of models, and ways to choose tokens: cold, and once more with the prefix and the graph kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from relay_hf import patched

from .context import Context
from .generate_calls import RELAY, SAMPLING, build, generate, inputs_of, stock_of
from .generate_seen import Seen
from .store import Record

REPLAYED = ("llama", "mistral", "qwen3", "gemma2", "gpt_oss", "gpt2", "phi3", "mixtral")
# Latents, attention code of their own, recurrent layers: relayed, but step by step.
STEP_BY_STEP = ("deepseek_v3", "gptj", "bloom", "mamba2", "qwen3_next")
MODES: dict[str, dict[str, Any]] = {"greedy": {}, "sampling": SAMPLING, "beams": {"num_beams": 3}}
_DRY = ("llama", "mamba2")


def cells(dry_run: bool) -> dict[str, Callable[[Context], Record]]:
    """By name."""
    families = _DRY if dry_run else (*REPLAYED, *STEP_BY_STEP)
    return {f"{family}, {mode}": partial(_check, family, mode) for mode, family in itertools.product(MODES, families)}


def _check(family: str, mode: str, context: Context) -> Record:
    model, inputs, seen = build(family, context), inputs_of(context), Seen(context)
    stock = stock_of(model, inputs, **MODES[mode])
    replayed = family in REPLAYED
    with patched(model, RELAY):
        for what in ("cold", "kept"):
            ours = generate(model, inputs, **MODES[mode])
            seen.compare(what, model, ours, stock, replayed)
            seen.expect_graphs(what, model, 1 if replayed else 0)
    return seen.record()
