"""From answers and distances to a record: which answers differ, where first, how near the choice was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .runs import Answers, Distance


def first_differences(stock: Answers, other: Answers, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Of each row whose answers differ: the first token that does, both words for it, and stock's gap there."""
    length = min(stock.tokens.shape[1], other.tokens.shape[1])
    found = []
    for row, (ours, theirs) in enumerate(zip(other.tokens[:, :length], stock.tokens[:, :length], strict=True)):
        steps = (ours != theirs).nonzero()
        if len(steps):
            step = int(steps[0])
            words = {name: tokenizer.decode(int(ids[step])) for name, ids in (("stock", theirs), ("relay_hf", ours))}
            found.append({"row": row, "step": step, "gap": round(float(stock.gaps[row, step]), 5)} | words)
    return found


def counted(tokens: Tensor, end: int) -> Tensor:
    """Where an answer goes on, or ends: `[new, rows]`. What follows its end is padding."""
    over = (tokens == end).cumsum(dim=1) - (tokens == end).long()
    return (over == 0).T


def distance_record(distance: Distance, counts: Tensor) -> dict[str, float]:
    """Mean divergence (nats a token) with its standard error over the answers, and the share of tokens that agree."""
    steps = len(distance.divergence)
    used = counts[:steps].double()
    by_row = (distance.divergence * used).sum(dim=0) / used.sum(dim=0)
    return {
        "divergence": float((distance.divergence * used).sum() / used.sum()),
        "standard_error": float(by_row.std() / len(by_row) ** 0.5),
        "agreement": float((distance.agrees * used).sum() / used.sum()),
    }


def ratio_record(stock: Distance, relayed: Distance, counts: Tensor) -> dict[str, float]:
    """The divergence of the patched model over stock's, with the standard error that the answers give it."""
    used = counts[: len(stock.divergence)].double()
    ours, theirs = ((each.divergence * used).sum(dim=0) / used.sum(dim=0) for each in (relayed, stock))
    ratio = ours.mean() / theirs.mean()
    off = (ours - ratio * theirs).std() / len(ours) ** 0.5
    return {"ratio": float(ratio), "standard_error": float(off / theirs.mean())}


def same_rows(one: Answers, other: Answers) -> int:
    """Answers that are equal to the last token."""
    length = max(one.tokens.shape[1], other.tokens.shape[1])
    pads = (torch.nn.functional.pad(each.tokens, (0, length - each.tokens.shape[1]), value=-1) for each in (one, other))
    ours, theirs = pads
    return int((ours == theirs).all(dim=1).sum())
