"""One batch of questions in one dtype: what stock and the patched model answer, and what they think of given tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel

import relay_hf
from benchmarks.numerics.errors import forced_logits


@dataclass(frozen=True)
class Answers:
    """What a model answers in greedy search.

    Attributes:
        tokens: `[rows, new]`; padding where an answer is over.
        gaps: by how much the scores of the best two tokens were apart, `[rows, new]`.
    """

    tokens: Tensor
    gaps: Tensor


@dataclass(frozen=True)
class Distance:
    """How far a model's view of given tokens is from float32's.

    Attributes:
        divergence: Kullback-Leibler divergence of its next-token distribution from float32's, `[steps, rows]`, nats.
        agrees: whether both have the same most likely token, `[steps, rows]`.
    """

    divergence: Tensor
    agrees: Tensor


def answers(model: PreTrainedModel, inputs: BatchEncoding, new: int) -> Answers:
    """The answers of at most `new` tokens."""
    options = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False}
    found = model.generate(**inputs, max_new_tokens=new, **options)
    best = torch.stack([scores.float().topk(2, dim=1).values for scores in found.scores], dim=1)
    return Answers(found.sequences[:, inputs.input_ids.shape[1] :], best[:, :, 0] - best[:, :, 1])


def relayed_answers(model: PreTrainedModel, inputs: BatchEncoding, new: int) -> Answers:
    """The answers of the patched model, nothing kept from before."""
    with relay_hf.patched(model, policy="always"):
        found = answers(model, inputs, new)
        _check(model)
    return found


def distances(
    model: PreTrainedModel, inputs: BatchEncoding, tokens: Tensor, exact: Tensor
) -> tuple[Distance, Distance]:
    """How far stock and the patched model are from float32, where all are given the same tokens.

    Args:
        model: in half precision.
        inputs: the prompts.
        tokens: that are forced, `[rows, new]`.
        exact: the logits of stock in float32 for them, `[steps, rows, vocabulary]`.
    """
    stock = _distance(forced_logits(model, inputs, tokens), exact)
    with relay_hf.patched(model, policy="always"):
        relayed = forced_logits(model, inputs, tokens)
        _check(model)
    return stock, _distance(relayed, exact)


def _distance(logits: Tensor, exact: Tensor) -> Distance:
    divergence = []
    for ours, theirs in zip(logits, exact, strict=True):  # a step at a time: all of them are gigabytes
        likely = theirs.log_softmax(dim=1)
        divergence.append((likely.exp() * (likely - ours.log_softmax(dim=1))).sum(dim=1))
    return Distance(torch.stack(divergence), logits.argmax(dim=2) == exact.argmax(dim=2))


def _check(model: PreTrainedModel) -> None:
    if not model.relay.last.relayed:
        raise RuntimeError(f"the call must be relayed; it was left to stock: {model.relay.last.reason}")
