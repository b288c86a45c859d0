"""Results of a model's earlier calls: whether it turned out unfit to relay, and which reasons were already logged."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import RelayError, UnfitModelError
from ..model.fingerprint import make_up
from ..reasons import Reason, Refusal

# One unforeseen error may be chance, a second one shows that the model is the cause.
_ERRORS = 2


@dataclass(eq=False)
class ModelFindings:
    """Results of the calls of one model so far.

    Attributes:
        refusal: why no call of this model is relayed, if a relayed forward has shown that; else None.
        unexplained: number of relayed forwards that raised an unforeseen error where stock did not.
        told: the reasons that were logged as warnings.
        leaves_out_positions: a relayed forward has shown that the model leaves out the `position_ids` of its inputs.
    """

    refusal: Refusal | None = None
    unexplained: int = 0
    told: set[str] = field(default_factory=set)
    leaves_out_positions: bool = False
    _made_up: list[Hashable] | None = None  # the model that `refusal` is about; None: the one that is looked at next
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Let the model be tried anew."""
        self.refusal, self.unexplained, self.leaves_out_positions, self._made_up = None, 0, False, None

    def look(self, modules: Sequence[nn.Module]) -> None:
        """Forget what was learnt of the model of `modules`, if it was changed since then."""
        if self.refusal is None and not self.leaves_out_positions:
            return  # the look takes 0.4 ms for 423 modules
        made_up = _make_up(modules)
        if self._made_up is None:
            self._made_up = made_up
        elif self._made_up != made_up:
            self.forget()

    def learn(self, refusal: Refusal, modules: Sequence[nn.Module], sure: bool) -> None:
        """Note why a relayed forward of the model of `modules` failed where stock did not.

        `sure`: the model is the cause. Otherwise it only counts as the cause the second time.
        """
        self.unexplained += not sure
        if sure or self.unexplained >= _ERRORS:
            self._made_up = _make_up(modules)
            self.refusal = refusal

    def is_news(self, reason: str) -> bool:
        """Whether a reason was not told before; from now on it counts as told."""
        with self._lock:
            known = reason in self.told
            self.told.add(reason)
        return not known

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled model keeps all but the lock, and what tells its own modules from a copy's."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_made_up")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _make_up(modules: Sequence[nn.Module]) -> list[Hashable] | None:
    """What the modules are made of; None if it can't be looked at, as a weak reference to what is gone."""
    try:
        return make_up(modules)
    except Exception:
        return None


def failure_of(error: Exception, lacking: bool = False) -> Refusal:
    """The error of a relayed forward, as the reason why its call is left to stock. `lacking`: memory ran out."""
    if isinstance(error, RelayError):
        reason = Reason.UNFIT_MODEL if isinstance(error, UnfitModelError) else Reason.UNFIT_CALL
        return reason.of(why=error)
    reason = Reason.OUT_OF_MEMORY if lacking else Reason.PREFILL_RAISED
    return reason.of(error=type(error).__name__, message=str(error).partition("\n")[0])  # torch.compile's have many
