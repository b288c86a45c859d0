"""The prompts that are timed: how many, how many random tokens they share, have of their own and get as an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .timed_model import ModelShape, NamedModel


@dataclass(frozen=True)
class Workload:
    """A batch of random tokens, `new` to be generated for each row.

    Attributes:
        model: the model's shape, or its name.
        rows: prompts.
        prefix: tokens that all of them start with.
        own: tokens that each ends with.
        new: tokens to be generated.
    """

    model: ModelShape | NamedModel
    rows: int
    prefix: int
    own: int
    new: int

    @property
    def shared(self) -> int:
        """Tokens of a prompt before its own."""
        return self.prefix

    def prompts(self, draw: int = 0) -> Tensor:
        """Token ids `[rows, shared + own]`: what is shared is the same in every draw, the own tokens are not."""
        own = random_ids(self.model.vocab, (self.rows, self.own), seed=1000 + draw)
        return torch.cat([self.shared_ids(), own], dim=1)

    def shared_ids(self) -> Tensor:
        """What stands before the own tokens, `[rows, shared]`."""
        return random_ids(self.model.vocab, (1, self.prefix), seed=1).expand(self.rows, -1)


@dataclass(frozen=True)
class FileWorkload(Workload):
    """Prompts of a file, in place of random tokens; `prefix` is what all of them share, `own` the most that one has.

    Attributes:
        source: path of the file; `-` is standard input.
        least_own: the fewest tokens that a prompt has behind the prefix.
    """

    source: str
    least_own: int

    @classmethod
    def of(cls, source: str, model: ModelShape | NamedModel, rows: Sequence[Tensor], new: int) -> FileWorkload:
        """Of the ids of each prompt, `[n]`; one token at least is each prompt's own."""
        lengths = [len(row) for row in rows]
        first, most = rows[0], min(lengths) - 1 if len(rows) > 1 else 0
        same = torch.stack([row[:most] == first[:most] for row in rows]).all(dim=0)
        prefix = int(same.cumprod(dim=0).sum())
        return cls(model, len(rows), prefix, max(lengths) - prefix, new, source, min(lengths) - prefix)


def random_ids(vocab: int, shape: tuple[int, int], seed: int) -> Tensor:
    """Token ids other than 0, the same for the same seed."""
    return torch.randint(1, vocab, shape, generator=torch.Generator().manual_seed(seed), device="cpu")
