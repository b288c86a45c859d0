"""Random batches in which rows share what they start with, in groups and as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.support.sizes import PAD

# So few that own tokens of several rows often start alike, and the tree has levels that nobody planned.
token = st.integers(3, 6)
own_tokens = st.lists(token, min_size=1, max_size=8)


@dataclass(frozen=True)
class Batch:
    """Prompts by row: what the row shares, then its own tokens; and the columns of padding that every row has."""

    shared: tuple[tuple[int, ...], ...]
    own: tuple[tuple[int, ...], ...]
    padding: int = 0

    @property
    def rows(self) -> list[list[int]]:
        return [[*shared, *own] for shared, own in zip(self.shared, self.own, strict=True)]

    def inputs(self) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, padded on the left."""
        width = max(map(len, self.rows)) + self.padding
        pads = [width - len(row) for row in self.rows]
        ids = [[PAD] * pad + row for pad, row in zip(pads, self.rows, strict=True)]
        mask = [[0] * pad + [1] * len(row) for pad, row in zip(pads, self.rows, strict=True)]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@st.composite
def batches(draw, least_rows: int = 2) -> Batch:
    """Batches of which all rows share a few tokens, and groups of them more."""
    start = draw(st.lists(token, min_size=4, max_size=16))
    groups = draw(st.lists(st.lists(token, max_size=10), min_size=1, max_size=3))
    own = draw(st.lists(st.tuples(st.sampled_from(groups), own_tokens), min_size=least_rows, max_size=5))
    padding = draw(st.integers(0, 3))
    return Batch(tuple((*start, *group) for group, _ in own), tuple(tuple(tokens) for _, tokens in own), padding)


@st.composite
def with_other_rows(draw, batch: Batch, row: int) -> Batch:
    """The same batch for one row and all that it shares, with other own tokens, as many or not, in some other rows."""
    others = [index for index in range(len(batch.own)) if index != row]
    changed = draw(st.lists(st.sampled_from(others), min_size=1, unique=True))
    own = list(batch.own)
    for index in changed:
        own[index] = tuple(draw(own_tokens))
    return replace(batch, own=tuple(own), padding=draw(st.integers(0, 3)))
