"""What relayed calls have shown of a model: that it is unfit, and which reasons its user has been told."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from ..reasons import Refusal


@dataclass(eq=False)
class ModelFindings:
    """What is known of one model from the calls so far.

    Attributes:
        refusal: why no call of this model is relayed, once a relayed forward has shown it.
        unexplained: relayed prefills that raised something unforeseen where stock did not.
        told: the reasons that its user has been told.
    """

    refusal: Refusal | None = None
    unexplained: int = 0
    told: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Let the model be tried anew."""
        self.refusal, self.unexplained = None, 0

    def is_news(self, reason: str) -> bool:
        """Whether a reason is told for the first time; by then it counts as told."""
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
