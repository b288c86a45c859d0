"""Samples of the embedding of each token of a prefix: a fingerprint's samples of the whole table are too few."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def embedding_samples(embedding: nn.Module, ids: Tensor) -> Tensor:
    """Two elements of the embedding of each id: `[P, 2]`, on the host.

    A fingerprint samples 32 elements of a whole table. A single row that is written through `.data`, as for new tokens,
    lies between these samples. A prefix uses few rows, so each of them is sampled.
    """
    table = getattr(embedding, "weight", None)
    if not isinstance(table, Tensor) or table.dim() != 2:
        return torch.zeros(len(ids), 0, device="cpu")
    # By column, because torch selects from a column on a single thread. For the 4,000 elements of a table's rows it
    # starts more threads (8 ms instead of 0.01 where other work holds the cores).
    where = ids.to(table.device)
    return torch.stack([table.detach()[:, column].index_select(0, where) for column in (0, -1)], dim=1).cpu()
