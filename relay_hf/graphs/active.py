"""The protocol of the object that runs a call's decode steps, and the variable that holds the one of the running call.

The model's replaced `__call__` and the call's last stopping criterion find it there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor


class StepRunner(Protocol):
    """Runs the forwards of a call after its prefill."""

    @property
    def pool(self) -> object:
        """The pool of graphs of the call's model."""

    def run(self, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """`forward(*args, **kwargs)`, or a replay of a graph that computes the same."""

    def run_ahead(self, input_ids: Tensor) -> None:
        """Start the step that the loop will ask for next."""


active_runner: ContextVar[StepRunner | None] = ContextVar("relay_hf_active_runner", default=None)
