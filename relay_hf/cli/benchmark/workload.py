"""The prompts that are timed: how many, how many random tokens they share, have of their own and get as an answer."""

from __future__ import annotations

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


def random_ids(vocab: int, shape: tuple[int, int], seed: int) -> Tensor:
    """Token ids other than 0, the same for the same seed."""
    return torch.randint(1, vocab, shape, generator=torch.Generator().manual_seed(seed), device="cpu")
