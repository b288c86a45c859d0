"""Prefixes kept between calls, under a byte budget."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ..cache_utils import SharedLayer
from .find import common_length


@dataclass(frozen=True, eq=False)
class KeptPrefix:
    """A prefix that has been prefilled.

    Attributes:
        ids: `[P]` int64 token ids, on the host.
        layers: K and V of each layer.
        context: what else its KV depends on (autocast); it serves only calls in the same.
        embedded: `[P, n]`, some elements of each id's embedding when it was prefilled.
    """

    ids: Tensor
    layers: list[SharedLayer]
    context: Hashable
    embedded: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def divisible(self) -> bool:
        """Whether its start serves too: not where a recurrent layer has a state after the last token only."""
        return all(layer.state is None for layer in self.layers)

    def first(self, length: int) -> list[SharedLayer]:
        """The layers' first `length` tokens, as views."""
        return self.layers if length == len(self) else [layer.first(length) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer.tensors())

    def __repr__(self) -> str:
        return f"KeptPrefix({len(self)} tokens, {self.nbytes / 2**20:.1f} MiB)"


class PrefixStore:
    """Kept prefixes, the least recently used first to leave.

    Args:
        budget: most bytes to hold.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._kept: list[KeptPrefix] = []  # in order of use, the latest last

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[KeptPrefix]:
        return iter(tuple(self._kept))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(kept.nbytes for kept in self._kept)

    def lookup(self, ids: Tensor, context: Hashable) -> tuple[KeptPrefix | None, int]:
        """The kept prefix with the longest common start with `ids` (`[n]`), and that length; (None, 0) if none has."""
        best, length = None, 0
        for kept in self._kept:
            common = common_length(kept.ids, ids) if kept.context == context else 0
            if common > length and (kept.divisible or common == len(kept)):
                best, length = kept, common
        return best, length

    def touch(self, kept: KeptPrefix) -> None:
        """Note a use."""
        if kept in self._kept:
            self._kept.remove(kept)
            self._kept.append(kept)

    def add(self, prefix: KeptPrefix) -> None:
        """Keep `prefix`, in place of those that are its start; evict what the budget does not hold.

        A prefix larger than the whole budget is not kept.
        """
        if prefix.nbytes > self.budget:
            return
        self._kept = [kept for kept in self._kept if not _starts(kept, prefix)]
        self._kept.append(prefix)
        while self.nbytes > self.budget:
            self._kept.pop(0)

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()


def _starts(kept: KeptPrefix, prefix: KeptPrefix) -> bool:
    if kept.context != prefix.context or not kept.divisible or len(kept) > len(prefix):
        return False
    return common_length(kept.ids, prefix.ids) == len(kept)
