"""Samples of the embedding of each token of a prefix: a fingerprint's samples of the whole table are too few."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def embedding_samples(embedding: nn.Module, ids: Tensor) -> Tensor:
    """Two elements of the embedding of each id: `[P, 2]`, on the host.

    A fingerprint samples 32 elements of a whole table. One row that is written through `.data`, as is done for new
    tokens, falls between them. A prefix uses few rows: each of them is looked at.
    """
    table = getattr(embedding, "weight", None)
    if not isinstance(table, Tensor) or table.dim() != 2:
        return torch.zeros(len(ids), 0)
    # By column: torch selects from one on a single thread, and starts others for the 4,000 elements of a table's rows
    # (8 ms where other work holds the cores, not 0.01).
    where = ids.to(table.device)
    return torch.stack([table.detach()[:, column].index_select(0, where) for column in (0, -1)], dim=1).cpu()
