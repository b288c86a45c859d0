"""Where the prefixes that a call goes on from come from: the store, and whatever else keeps KV between calls."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol

from torch import Tensor, nn

from ..model.fingerprint import ModelFingerprint
from .entry import PrefixEntry
from .kept_prefix import KeptPrefix, Match
from .store import Snapshot


class PrefixSource(Protocol):
    """Finds what is kept of the start of rows, and keeps what was prefilled."""

    def match(
        self, rows: Sequence[Tensor], context: Hashable, modules: Sequence[nn.Module]
    ) -> tuple[list[Match], Snapshot | None]:
        """How much of the start of each row (`[n]` ids) is kept, and the model that it is kept of, as it was."""

    def look(self, snapshot: Snapshot, modules: Sequence[nn.Module], embedding: nn.Module) -> ModelFingerprint | None:
        """The model now, if it is still that one; None if not, and then it is not kept any more."""

    def keep(
        self, before: ModelFingerprint, modules: Sequence[nn.Module], prefixes: Iterable[PrefixEntry], context: Hashable
    ) -> list[KeptPrefix | None]:
        """Keep what was prefilled since `before`, unless the model changed meanwhile."""
