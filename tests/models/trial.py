"""One model type, stock against patched: what its status is, whether output is stock's, and all is undone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

import relay_hf
from relay_hf.model.architectures import architecture_of
from relay_hf.model.upstream.caches import keeps_state
from relay_hf.model.upstream.models import forward_inputs, takes_media
from relay_hf.model.upstream.names import TOKEN_TYPES
from relay_hf.testing import prompts
from tests.models.undo import Before
from tests.support.model_snapshot import differences, snapshot
from tests.support.tiny_models import tiny_model

PREFIX = 20
EQUAL, PADDED = (5, 5, 5), (3, 7, 2, 5)
NEW_TOKENS = 8
# Of logits of a few units, in float32. Wrong positions, masks or merges move them by 0.01 and more.
TOLERANCE = 1e-4


@dataclass
class Trial:
    """What became of a model type.

    Attributes:
        model_type: as Transformers calls it.
        equal, padded: reason of the report for rows of one length and for padded ones; "" where they were relayed.
        layers: kinds of its layers, by what they keep.
        recurrent: whether any layer keeps a state.
        own_attention: whether attention has code of its own, which is handed tensors in two parts.
        errors: what differed from stock, or after `unpatch_model` from what was before.
    """

    model_type: str
    equal: str = ""
    padded: str = ""
    layers: tuple[str, ...] = ()
    recurrent: bool = False
    own_attention: bool = False
    errors: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """As the table of expectations and the documentation have it."""
        if self.equal:
            return f"untouched: {self.equal}"
        return "state shared" if self.recurrent else "relayed"


def try_type(model_type: str, build: Callable[[str], Any] = tiny_model) -> Trial:
    """Build a tiny model of the type, and generate with and without the relay, with and without padding."""
    stock = build(model_type)
    # The second time with the prefix kept, and other tokens behind it, which are said to be text.
    steps = [
        (name, what, _inputs(own, seed, _types(stock) if what == "kept" else ()))
        for name, own in (("equal", EQUAL), ("padded", PADDED))
        for seed, what in ((0, "cold"), (1, "kept"))
    ]
    outputs = [_generate(stock, inputs) for *_, inputs in steps[:-1]]
    once = snapshot(stock)
    outputs.append(_generate(stock, steps[-1][2]))
    ours = copy.deepcopy(stock)
    before = Before(ours, restless=differences(once, snapshot(stock)))
    relay_hf.patch_model(ours, policy="always")
    config = stock.config.get_text_config(decoder=True)
    template = DynamicCache(config=config)
    trial = Trial(
        model_type,
        layers=tuple(sorted({_KINDS.get(type(layer).__name__, type(layer).__name__) for layer in template.layers})),
        recurrent=keeps_state(template),
        own_attention=architecture_of(config).own_attention,
    )
    for (name, what, inputs), expected in zip(steps, outputs, strict=True):
        if what == "cold":
            ours.relay.clear()
        got = _generate(ours, inputs)
        trial.errors += [f"{name}, {what}: {error}" for error in _differences(expected, got)]
        report = ours.relay.last
        setattr(trial, name, "" if report.relayed else report.reason)
        reused = report.prefix_tokens_reused
        operator = not trial.own_attention and bool(set(trial.layers) - {"recurrent", "no cache"})
        if report.relayed and report.backend != ("torch" if operator else "model"):
            trial.errors.append(f"{name}, {what}: {report.backend} computed attention")
        if report.relayed and (reused > 0) != (what == "kept"):
            trial.errors.append(f"{name}, {what}: {reused} tokens were reused")
    relay_hf.unpatch_model(ours)
    trial.errors += [f"not undone: {difference}" for difference in before.differences()]
    return trial


# What the layers of a cache are called in the documentation.
_KINDS = {
    "DummyLayer": "no cache",
    "DynamicLayer": "attention",
    "DynamicSlidingWindowLayer": "window",
    "DynamicIndexedLayer": "indexed attention",
    "LinearAttentionLayer": "recurrent",
    "LinearAttentionAndFullAttentionLayer": "attention and recurrent",
    "LinearAttentionAndSlidingWindowAttentionLayer": "window and recurrent",
}


def _types(model: Any) -> frozenset[str]:
    """The inputs by which a model is told what of its prompts is text."""
    return TOKEN_TYPES & forward_inputs(type(model)).keys() if takes_media(model) else frozenset()


def _inputs(own: tuple[int, ...], seed: int, types: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """Prompts that share their start whatever the seed, of tokens of type 0 by each of `types`."""
    inputs, start = prompts(PREFIX, own, seed), prompts(PREFIX, (1,))["input_ids"][0, :PREFIX]
    width = inputs["input_ids"].shape[1]
    for row, length in enumerate(own):
        inputs["input_ids"][row, width - length - PREFIX : width - length] = start
    return {**inputs, **{name: torch.zeros_like(inputs["input_ids"]) for name in types}}


def _generate(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    # use_cache for types that leave it off by default (MPT).
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "use_cache": True}
    return model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)


def _differences(expected: Any, got: Any) -> list[str]:
    if not torch.equal(expected.sequences, got.sequences):
        return ["other tokens"]
    error = max(float((a - b).abs().max()) for a, b in zip(expected.logits, got.logits, strict=True))
    scale = max(1.0, max(float(a.abs().max()) for a in expected.logits))
    return [f"logits differ by {error:.1e}"] if not error <= TOLERANCE * scale else []
