"""The runner of the generate() call that runs now: calls of the model come to it, and so does its last criterion."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor


class StepRunner(Protocol):
    """Runs the forwards of a call behind its prefill."""

    @property
    def pool(self) -> object:
        """The pool of the model that it runs."""

    def run(self, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """`forward(*args, **kwargs)`, by a graph where that is the same."""

    def run_ahead(self, input_ids: Tensor) -> None:
        """Start the step that the loop is about to ask for."""


active_runner: ContextVar[StepRunner | None] = ContextVar("relay_hf_active_runner", default=None)
