"""The store of a model's kept prefixes, with the fingerprint of the model that they belong to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..model.fingerprint import ModelFingerprint, embedding_samples
from .entry import PrefixEntry
from .kept_prefix import KeptPrefix, Match, Planned, RadixNode, overhead_bytes
from .radix import RadixTree
from .snapshot import Snapshot

logger = logging.getLogger("relay_hf")


class PrefixStore:
    """Kept prefixes of one model. Every method holds one lock.

    A prefix is kept only if the model was the same before and after its prefill, and it serves only while the model
    is still the same: all kept prefixes belong to one fingerprint.

    Args:
        budget: returns the most bytes to hold. It is called at the first use, because it depends on the model's device.
    """

    def __init__(self, budget: Callable[[], int]) -> None:
        self._budget = budget
        self._lock = threading.RLock()
        self._fingerprint: ModelFingerprint | None = None
        self._tree: RadixTree | None = None

    @property
    def tree(self) -> RadixTree:
        """The kept prefixes."""
        with self._lock:
            if self._tree is None:
                self._tree = RadixTree(self._budget())
            return self._tree

    @property
    def prefixes(self) -> tuple[KeptPrefix, ...]:
        """The kept prefixes, the least recently used first."""
        with self._lock:
            return () if self._tree is None else tuple(self._tree)

    @property
    def budget(self) -> int:
        """The most bytes to hold."""
        with self._lock:
            return self._budget() if self._tree is None else self._tree.budget

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            if self._tree is not None:
                self._tree.clear()
            self._tree = self._fingerprint = None

    def release(self) -> None:
        """Drop the prefixes that are not pinned."""
        with self._lock:
            if self._tree is not None:
                self._tree.release()

    def match(
        self, rows: Sequence[Tensor], context: Hashable, modules: Sequence[nn.Module], drop: bool = True
    ) -> tuple[list[Match], Snapshot | None]:
        """How much of the start of each row (`[n]` ids) is kept. It compares tokens alone.

        `drop`: kept prefixes of a model that has changed may be dropped.

        Returns:
            A match for each row, and a snapshot of the model that the matches belong to, for `look`; None if nothing is
            kept.
        """
        with self._lock:
            if not self._tree or self._fingerprint is None:
                return [Match()] * len(rows), None
            if next(self._tree.under(context), None) is None:
                # The model may have been moved, and kept prefixes still hold memory on its old device.
                if drop and not self._fingerprint.holds(modules):
                    self._drop()
                return [Match()] * len(rows), None
            matches = [self._tree.match(ids, context) for ids in rows]
            return matches, _snapshot_of(
                self._fingerprint, dict.fromkeys(node for match in matches for node in match.path)
            )

    def look(
        self, snapshot: Snapshot, modules: Sequence[nn.Module], embedding: nn.Module, drop: bool = True
    ) -> ModelFingerprint | None:
        """The model's fingerprint now, if it equals the snapshot's; else None, and all prefixes are dropped if `drop`.

        `keep` takes the result, and keeps a prefix that extends a kept one only if the model has not changed since.
        """
        with self._lock:
            now = ModelFingerprint(modules, snapshot.fingerprint.ignore)
            if snapshot.fingerprint.same(now) and _embeddings_hold(embedding, snapshot):
                return now
            if drop and self._fingerprint is snapshot.fingerprint:  # else another thread has compared the model since
                self._drop()
            return None

    def _drop(self) -> None:
        logger.info("relay_hf: the model has changed, %d kept prefixes are dropped", len(self.prefixes))
        self.clear()

    def stored(
        self,
        modules: Sequence[nn.Module],
        embedding: nn.Module,
        context: Hashable,
        chosen: Collection[KeptPrefix] | None,
    ) -> tuple[list[KeptPrefix], list[PrefixEntry], ModelFingerprint | None]:
        """The kept prefixes for a file; none if the model changed.

        Args:
            chosen: the prefixes to write; None: all. The prefixes that they extend come along.

        Returns:
            The prefixes, each after the one that it extends; the same as entries of a file; the model's fingerprint.
        """
        with self._lock:
            nodes = list(self.tree.under(context))
            if chosen is not None:
                # A chosen prefix that has been joined with the next one meanwhile is still kept, as a part of that.
                ends = [self.tree.ending(each.ids, context) for each in chosen]
                wanted = {node for end in ends if end is not None for node in end.path()}
                nodes = [node for node in self.tree.under(context) if node in wanted]
            now = (
                None
                if self._fingerprint is None
                else self.look(_snapshot_of(self._fingerprint, nodes), modules, embedding)
            )
            if now is None:
                return [], [], None
            places: dict[RadixNode, int] = {node: place for place, node in enumerate(nodes)}
            files = [PrefixEntry(node.tokens, node.run, None, places.get(node.parent), node.pinned) for node in nodes]
            return nodes, files, now

    def ending(self, ids: Tensor, context: Hashable, pin: bool) -> KeptPrefix | None:
        """The kept prefix of just these tokens (`[P]`), pinned if `pin`; None if not all of them are kept."""
        with self._lock:
            found = self.tree.ending(ids, context)
            if found is not None:
                found.pinned = found.pinned or pin
            return found

    def lacks(self, prefixes: Iterable[Planned], context: Hashable, make_room: bool = False) -> int:
        """Bytes that the budget lacks to keep all of these at once, or 0: see `RadixTree.lacks`."""
        with self._lock:
            return self.tree.lacks(prefixes, context, make_room)

    def touch(self, matches: Iterable[Match]) -> None:
        """Note the use of kept prefixes."""
        with self._lock:
            for match in matches:
                self.tree.touch(match)

    def fingerprint(self, modules: Sequence[nn.Module]) -> ModelFingerprint:
        """The model's fingerprint now, for `keep` after a prefill."""
        with self._lock:
            return ModelFingerprint(modules, frozenset() if self._fingerprint is None else self._fingerprint.ignore)

    def keep(
        self,
        before: ModelFingerprint,
        modules: Sequence[nn.Module],
        prefixes: Iterable[PrefixEntry],
        context: Hashable,
        most: int | None = None,
        join: bool = True,
    ) -> list[KeptPrefix | None]:
        """Keep prefixes that were prefilled since `before`, unless the model changed meanwhile.

        `context`, `most`, `join` and the result: see `RadixTree.add`.
        """
        with self._lock:
            # Buffers that the model's own forward rewrites (longrope's inv_freq) are no sign of a change.
            after = ModelFingerprint(modules, before.ignore)
            after = after.without(before.rewritten(after))
            if not before.without(after.ignore).same(after):
                return [None for _ in prefixes]
            if self._fingerprint is None or not self._fingerprint.without(after.ignore).same(after):
                self.tree.clear()  # so that no new prefix extends one of the changed model
            self._fingerprint = after
            kept: list[KeptPrefix | None] = []
            for each in prefixes:
                behind = None if each.parent is None else kept[each.parent]
                lost = each.parent is not None and behind is None
                kept.append(None if lost else self.tree.add(each, context, most, join, behind))
            return kept


def _snapshot_of(fingerprint: ModelFingerprint, prefixes: Iterable[KeptPrefix]) -> Snapshot:
    return Snapshot(fingerprint, tuple((prefix.tokens, prefix.embedded) for prefix in prefixes))


def _embeddings_hold(embedding: nn.Module, snapshot: Snapshot) -> bool:
    """Whether the embeddings of tokens are unchanged. All are read at once, because on a GPU each read waits for it."""
    tokens, before = [each for each, _ in snapshot.samples], [each for _, each in snapshot.samples]
    return not tokens or torch.equal(torch.cat(before), embedding_samples(embedding, torch.cat(tokens)))


def token_overhead(embedding: nn.Module) -> int:
    """Bytes that are kept of a token beside its KV."""
    return overhead_bytes(embedding_samples(embedding, torch.zeros(1, dtype=torch.int64, device="cpu")))
