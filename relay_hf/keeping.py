"""What a model keeps between calls: prefixes, the witness that they still hold, and recent prompts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from .prefix import KeptPrefix, PrefixStore, RecentPrompts, Witness

logger = logging.getLogger("relay_hf")


class Keeper:
    """Kept prefixes of one model. All that it does is done under one lock.

    A prefix is kept only if the model was the same before and after its prefill, and it serves only while the model
    is still the same: all kept prefixes belong to the one witness.

    Args:
        budget: gives the most bytes to hold, at first use (the device that the model is on by then decides).
        prompts: how many recent prompts are remembered.
        least: fewest tokens that a start must have to count as returning.
    """

    def __init__(self, budget: Callable[[], int], prompts: int, least: int) -> None:
        self._budget = budget
        self._prompts = prompts
        self._least = least
        self._lock = threading.RLock()
        self._witness: Witness | None = None
        self._store: PrefixStore | None = None
        self._recent = RecentPrompts(prompts, least)

    @property
    def store(self) -> PrefixStore:
        """The kept prefixes."""
        with self._lock:
            if self._store is None:
                self._store = PrefixStore(self._budget())
            return self._store

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self.store.clear()
            self._recent.clear()
            self._witness = None

    def lookup(
        self, modules: Sequence[nn.Module], embedding: nn.Module, ids: Tensor, context: Hashable
    ) -> tuple[KeptPrefix | None, int]:
        """The kept prefix that has most of the start of `ids` (`[n]`), and how much; nothing if the model changed."""
        with self._lock:
            if not len(self.store):
                return None, 0
            kept, length = None, 0
            if self._witness is not None and self._witness.holds(modules):
                kept, length = self.store.lookup(ids, context)
                if kept is None or torch.equal(kept.embedded[:length], embedded(embedding, kept.ids[:length])):
                    return kept, length
            logger.info("relay_hf: the model has changed, %d kept prefixes are dropped", len(self.store))
            self.clear()
            return None, 0

    def witness(self, modules: Sequence[nn.Module]) -> Witness:
        """The model now, to be given to `keep` after a prefill."""
        with self._lock:
            return Witness(modules, frozenset() if self._witness is None else self._witness.ignore)

    def keep(self, before: Witness, modules: Sequence[nn.Module], prefix: KeptPrefix, extends: bool) -> None:
        """Keep a prefix that was prefilled since `before`, unless the model changed meanwhile.

        `extends`: it starts with one that was kept before, so the model must be the one that all kept ones saw.
        """
        with self._lock:
            # Buffers that the model's own forward rewrites (longrope's inv_freq) say nothing of a change.
            after = Witness(modules, before.ignore)
            after = after.without(before.rewritten(after))
            if not before.without(after.ignore).same(after):
                return
            seen = self._witness
            changed = seen is None or not seen.without(after.ignore).same(after)
            if changed:
                self.store.clear()
            self._witness = after
            if not (changed and extends):
                self.store.add(prefix)

    def returning(self, ids: Tensor) -> int:
        """Length of the longest start of `ids` (`[n]`) that a recent prompt had too (tokens)."""
        with self._lock:
            return self._recent.returning(ids)

    def remember(self, ids: Tensor, kept: KeptPrefix | None) -> None:
        """Note a prompt, and the use of a kept prefix."""
        with self._lock:
            if len(ids):
                self._recent.add(ids)
            if kept is not None:
                self.store.touch(kept)

    def __getstate__(self) -> dict[str, object]:
        """Copies start empty."""
        return {"_budget": self._budget, "_prompts": self._prompts, "_least": self._least}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**{name.lstrip("_"): value for name, value in state.items()})  # type: ignore[misc]


def embedded(embedding: nn.Module, ids: Tensor) -> Tensor:
    """Two elements of the embedding of each id: `[P, 2]`, on the host.

    The witness samples 32 elements of a whole table; one row written through `.data`, as is done for new tokens, falls
    between them. The rows that a prefix uses are few enough to look at each.
    """
    table = getattr(embedding, "weight", None)
    if not isinstance(table, Tensor) or table.dim() != 2:
        return torch.zeros(len(ids), 0)
    columns = torch.tensor([0, table.shape[1] - 1], device=table.device)
    return table.detach()[ids.to(table.device)[:, None], columns].cpu()
