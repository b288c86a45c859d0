"""The protocol by which a call finds and keeps prefixes; the store implements it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol

from torch import Tensor, nn

from ..model.fingerprint import ModelFingerprint
from .entry import PrefixEntry
from .kept_prefix import KeptPrefix, Match
from .snapshot import Snapshot


class PrefixSource(Protocol):
    """Finds kept prefixes that rows start with, and keeps prefixes that were prefilled."""

    def match(
        self, rows: Sequence[Tensor], context: Hashable, modules: Sequence[nn.Module], drop: bool = True
    ) -> tuple[list[Match], Snapshot | None]:
        """How much of the start of each row (`[n]` ids) is kept, and a snapshot of the model that it belongs to.

        `drop`: kept prefixes of a model that has changed may be dropped.
        """

    def look(
        self, snapshot: Snapshot, modules: Sequence[nn.Module], embedding: nn.Module, drop: bool = True
    ) -> ModelFingerprint | None:
        """The model's fingerprint now, if it equals the snapshot's; else None, and all are dropped if `drop`."""

    def keep(
        self,
        before: ModelFingerprint,
        modules: Sequence[nn.Module],
        prefixes: Iterable[PrefixEntry],
        context: Hashable,
        most: int | None = None,
    ) -> list[KeptPrefix | None]:
        """Keep what was prefilled since `before`, unless the model changed meanwhile.

        `most`: copy the tensors, and keep at most so many bytes of a prefix; None: the tensors are the prefix's own.
        """
