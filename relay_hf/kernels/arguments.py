"""The operator's arguments, in two groups that its functions pass on together: own columns, and score options."""

from __future__ import annotations

from typing import NamedTuple

import torch


class OwnColumns(NamedTuple):
    """Which of a row's own columns are filled and may be attended.

    Attributes:
        start: `[B]` integer, number of leading own columns of a row that are padding. None: 0.
        length: `[B]` integer, number of own columns of a row that are filled. None: all.
        mask: `[B, S]` bool, True where an own column may be attended. None: everywhere.
    """

    start: torch.Tensor | None = None
    length: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class ScoreOptions(NamedTuple):
    """How products of queries and keys become weights.

    Attributes:
        scale: Factor on the scores.
        sliding_window: Only keys with `query position - key position < sliding_window` are visible. None: all.
        softcap: `softcap * tanh(scores / softcap)` on the scaled scores, before masking. None: none.
        sinks: `[Hq]`, one more logit per query head in the softmax's denominator, without a value. None: none.
        alibi_slopes: `[Hq]`, `slope * (key position - query position)` is added to the capped scores. None: none.
    """

    scale: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
