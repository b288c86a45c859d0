"""One seed's errors: stock and patched in half precision, against stock in float32 with the same weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

import relay_hf
from relay_hf.testing import VOCABULARY, prompts
from tests.support.tiny_models import tiny_model

from .subjects import DTYPES, STEPS, Subject


@dataclass(frozen=True)
class Errors:
    """Mean squares over the vocabulary, one for each forced token of each row: `[STEPS, rows]`, float64.

    Attributes:
        stock, patched: of the logits' errors.
        logits: of the logits themselves, in float32.
    """

    stock: Tensor
    patched: Tensor
    logits: Tensor


class Forced(LogitsProcessor):
    """Makes generate() take the given tokens, so that all contenders see the same ones."""

    def __init__(self, prompt: int, tokens: Tensor) -> None:
        self.prompt, self.tokens = prompt, tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores that leave one token."""
        wanted = self.tokens[:, input_ids.shape[1] - self.prompt][:, None]
        return torch.full_like(scores, -1e9).scatter_(1, wanted, 0.0)


def forced_logits(model: PreTrainedModel, inputs: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The logits from which each of `tokens` (`[rows, steps]`) would have been chosen: `[steps, rows, vocabulary]`."""
    forced = LogitsProcessorList([Forced(inputs["input_ids"].shape[1], tokens)])
    count = tokens.shape[1]
    options = {"max_new_tokens": count, "min_new_tokens": count, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(**inputs, **options, logits_processor=forced).logits).double()


def measure(subject: Subject, dtype: str, seed: int) -> Errors:
    """The errors for one seed of weights, prompts and forced tokens."""
    model = tiny_model(subject.family, seed=seed, **subject.overrides).to(DTYPES[dtype])
    inputs = prompts(subject.prefix, subject.own, seed=seed)
    shape = (len(subject.own), STEPS)
    tokens = torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
    exact = forced_logits(copy.deepcopy(model).float(), inputs, tokens)
    stock = forced_logits(model, inputs, tokens)
    with relay_hf.patched(model, policy="always"):
        patched = forced_logits(model, inputs, tokens)
        if not model.relay.last.relayed:
            raise RuntimeError(f"{subject.name} in {dtype} was not relayed: {model.relay.last.reason}")
    return Errors(*(each.square().mean(dim=-1) for each in (stock - exact, patched - exact, exact)))
