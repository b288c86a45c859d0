"""What a model and the process were before `patch_model`, held against what `unpatch_model` leaves."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

import relay_hf.patching  # noqa: F401 (importing it registers the operators with torch, before anything is looked at)
from tests.support.counts import count_tried
from tests.support.model_snapshot import differences, snapshot
from tests.support.process_state import COUNTED, REGISTERED, ProcessState

_SEEDED = "_lazy_seed_tracker"  # torch's: Reformer's own forward seeds it


class Before:
    """A model, and all of the process around it, before it is patched.

    Args:
        model: it has been called as stock, so that what its first call leaves is there.
        restless: the paths in it that each of stock's own calls changes.
    """

    def __init__(self, model: nn.Module, restless: Collection[str]) -> None:
        self._model, self._anatomy, self._restless = model, snapshot(model), restless
        self._surroundings = ProcessState()

    def differences(self) -> list[str]:
        """What is not as it was."""
        count_tried("model types unpatched")
        around = {change for change in self._surroundings.changes() if _SEEDED not in change}
        within = differences(self._anatomy, snapshot(self._model))
        return [
            *(f"{path}: {change}" for path, change in within.items() if path not in self._restless),
            *sorted(around - REGISTERED - {COUNTED}),
        ]
