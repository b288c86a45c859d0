"""Results of a model's earlier calls: whether it turned out unfit to relay, and which reasons were already logged."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from ..reasons import Refusal


@dataclass(eq=False)
class ModelFindings:
    """Results of the calls of one model so far.

    Attributes:
        refusal: why no call of this model is relayed, if a relayed forward has shown that; else None.
        unexplained: number of relayed prefills that raised an unforeseen error where stock did not.
        told: the reasons that were logged as warnings.
    """

    refusal: Refusal | None = None
    unexplained: int = 0
    told: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Let the model be tried anew."""
        self.refusal, self.unexplained = None, 0

    def is_news(self, reason: str) -> bool:
        """Whether a reason was not told before; from now on it counts as told."""
        with self._lock:
            known = reason in self.told
            self.told.add(reason)
        return not known

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled model keeps all but the lock."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
