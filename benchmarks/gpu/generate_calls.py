"""The calls of `generate`: tiny models, prompts that share a prefix, and stock's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

from relay_hf import RelayConfig
from relay_hf.model.upstream.names import CACHE
from relay_hf.testing.prompts import prompts
from tests.support.tiny_models import tiny_model

from .context import Context, LeftOut

NEW = 16  # tokens; of the 15 decode steps behind the first, one is recorded, and 14 are replays
RELAY = RelayConfig(policy="always", cuda_graphs=True)
SAMPLING = {"do_sample": True}
SHARED, OWN = 40, (5, 9, 7, 3)  # longer than the tiny models' windows
_SEED = 0
_SCORES = {"return_dict_in_generate": True, "output_scores": True}
_EAGER = ("gemma2", "gpt_oss")  # sdpa leaves out what their attention has besides

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Stock:
    """What stock answers.

    Attributes:
        tokens: `[B, L]`, prompts included.
        gaps: of greedy search, by how much the chosen token leads the next one, `[B, n]` of the n new ones; else None.
    """

    tokens: Tensor
    gaps: Tensor | None = None


def build(family: str, context: Context) -> PreTrainedModel:
    """A tiny model on the device.

    Raises:
        LeftOut: this version of Transformers has no such type.
    """
    if family not in CONFIG_MAPPING:
        raise LeftOut(f"this version of Transformers has no type {family!r}")
    model = tiny_model(family).to(context.device)
    if family in _EAGER:
        model.set_attn_implementation("eager")
    return model


def inputs_of(context: Context, shared: int = SHARED, own: Sequence[int] = OWN, seed: int = 0) -> Inputs:
    """Left-padded rows on the device that share `shared` tokens."""
    return {name: tensor.to(context.device) for name, tensor in prompts(shared, own, seed).items()}


def seed() -> None:
    """Let what is drawn next, on the host and on every GPU, be what a call draws."""
    torch.manual_seed(_SEED)


def generate(model: PreTrainedModel, inputs: Inputs, **options: Any) -> Any:
    """`NEW` tokens a row; what is drawn is drawn from one seed."""
    if options.get("do_sample"):
        seed()
    return generate_unseeded(model, inputs, **options)


def generate_unseeded(model: PreTrainedModel, inputs: Inputs, **options: Any) -> Any:
    """`NEW` tokens a row."""
    return model.generate(**inputs, **{"max_new_tokens": NEW, "min_new_tokens": NEW, **options})


def stock_of(model: PreTrainedModel, inputs: Inputs, **options: Any) -> Stock:
    """What a model that is not patched answers; by greedy search without `options` of decoding."""
    if options:
        return Stock(generate(model, inputs, **options))
    return greedy(generate(model, inputs, **_SCORES))


def greedy(output: Any) -> Stock:
    """Of the output of a call of greedy search, with scores."""
    top = torch.stack(output.scores, dim=1).topk(2).values
    return Stock(output.sequences, top[..., 0] - top[..., 1])


def conversation(model: PreTrainedModel, context: Context) -> tuple[Any, Any]:
    """The outputs of two turns by greedy search, with scores: the second goes on from the first one's cache.

    Another call of as many rows comes between them: what the first has returned is not its to write to.
    """
    inputs = inputs_of(context)
    first = generate(model, inputs, **_SCORES)
    generate(model, inputs_of(context, seed=1))
    text = torch.cat([first.sequences, first.sequences[:, SHARED : SHARED + 4]], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, text.shape[1] - inputs["input_ids"].shape[1]), value=1)
    turn = {"input_ids": text, "attention_mask": mask}
    return first, generate(model, turn, **{CACHE: getattr(first, CACHE)}, **_SCORES)
