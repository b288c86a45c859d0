"""From the errors of many seeds to ratios, and whether they are within the bound."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .errors import Errors

BOUND = 1.05  # patched over stock, root mean square
_JUMP = 5.0  # times the usual error: what rounding alone does not do, and another expert does


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        subject, dtype: what was measured.
        routed: whether experts were chosen.
        seeds: how many.
        stock, patched: root mean square errors over all seeds, relative to the logits' own root mean square.
        median: of the seeds' ratios, patched over stock.
        deviation: standard error of the ratio of the two root mean squares.
        jumps: logits of stock and of the patched model that are off by more than five times the usual (rows * steps).
    """

    subject: str
    dtype: str
    routed: bool
    seeds: int
    stock: float
    patched: float
    median: float
    deviation: float
    jumps: tuple[int, int]

    @property
    def ratio(self) -> float:
        """Patched over stock, over all seeds."""
        return self.patched / self.stock

    @property
    def within(self) -> bool:
        """Whether the ratios are within the bound; where experts are chosen, the pooled one up to its own chance."""
        allowed = BOUND + 2 * self.deviation if self.routed else BOUND
        return self.median <= BOUND and self.ratio <= allowed


def summarize(subject: str, dtype: str, routed: bool, errors: Sequence[Errors]) -> Result:
    """The line for a subject in a dtype."""
    stock = torch.stack([each.stock for each in errors])
    patched = torch.stack([each.patched for each in errors])
    by_seed = [part.flatten(1).mean(1) for part in (stock, patched)]
    ratio = float((by_seed[1].mean() / by_seed[0].mean()).sqrt())
    # Of a ratio of means over independent seeds, to first order; the root halves it.
    off = (by_seed[1] - ratio**2 * by_seed[0]).std() / len(errors) ** 0.5
    jump = stock.median() * _JUMP**2
    logits = torch.stack([each.logits for each in errors]).mean()
    return Result(
        subject,
        dtype,
        routed,
        len(errors),
        stock=float((stock.mean() / logits).sqrt()),
        patched=float((patched.mean() / logits).sqrt()),
        median=statistics.median((by_seed[1] / by_seed[0]).sqrt().tolist()),
        deviation=float(off / (2 * ratio * by_seed[0].mean())),
        jumps=(int((stock > jump).sum()), int((patched > jump).sum())),
    )
