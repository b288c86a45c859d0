"""ALiBi, a position bias that is linear in the distance, split so that a part needs one bias per key.

`slope * (key - query) = slope * (key - last) + slope * (last - query)` for the last key of a part. The first term is
one row of biases per query head. The second is the same for all keys of the part, and is added to its log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Distances:
    """Positions relative to a part's last key. Keys near it weigh most, and have small, and so exact, numbers.

    Attributes:
        keys: `[K]`, 0 for the last key and negative before it.
        queries: `[R or 1, T]`, positions of the queries. Both float32 (float64 for float64 queries).
    """

    keys: torch.Tensor
    queries: torch.Tensor

    @classmethod
    def of(cls, length: int, first_queries: Sequence[int], count: int, query: torch.Tensor) -> Distances:
        """Distances of a part of `length` keys and, for each row, of `count` queries from its first query on."""
        dtype, device = torch.float64 if query.dtype is torch.float64 else torch.float32, query.device
        keys = torch.arange(1 - length, 1, dtype=dtype, device=device)
        firsts = torch.tensor(first_queries, dtype=dtype, device=device)
        return cls(keys, firsts[:, None] + torch.arange(count, dtype=dtype, device=device))

    def key_bias(self, slopes: torch.Tensor) -> torch.Tensor:
        """The bias of each key under `slopes` `[Hkv, G]`: `[Hkv, G, 1, K]`."""
        return (slopes.unsqueeze(-1) * self.keys).unsqueeze(2)

    def complete(self, lse: torch.Tensor, slopes: torch.Tensor) -> None:
        """Add the queries' share of the bias to the `lse` `[R, Hkv, G, T]` of the part, in place."""
        lse.sub_(slopes.unsqueeze(-1) * self.queries[:, None, None])
