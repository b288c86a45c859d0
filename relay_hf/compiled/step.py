"""One compiled decode step: compiled at its first run, and left out if it can't be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter
from types import FunctionType
from typing import Any, NamedTuple

import torch

from .reordered import ReorderedWeights


class StepResult(NamedTuple):
    """What a run returned.

    Attributes:
        outputs: the model's outputs.
        compilations: how often the step was compiled in this run.
        seconds: the time of that (seconds).
    """

    outputs: Any
    compilations: int = 0
    seconds: float = 0.0


class CompiledStep:
    """A model's decode step, compiled for one state of the model.

    It is compiled in the thread that needs it. A thread of its own would not do: while it compiles,
    `torch.compiler.is_compiling()` is true for all others, and Transformers' code asks that.

    Attributes:
        failed: why the step could not be compiled, or None.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._ran = False
        self._step: Callable[[dict[str, Any]], Any] | None = None
        self.failed: str | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether the step was compiled, or is being compiled."""
        return self._step is not None

    def run(self, forward: Callable[..., Any], inputs: dict[str, Any], weights: ReorderedWeights | None) -> StepResult:
        """`forward(**inputs)`, compiled, or as it is if `failed`. Errors of the model are raised as the model does."""
        with nullcontext() if self._ran else self._lock:  # else several threads would compile it at once
            step = self._compiled(forward)
            result = StepResult(forward(**inputs)) if step is None else self._run(step, forward, inputs, weights)
            self._ran = True
        return result

    def _run(
        self,
        step: Callable[[dict[str, Any]], Any],
        forward: Callable[..., Any],
        inputs: dict[str, Any],
        weights: ReorderedWeights | None,
    ) -> StepResult:
        from .inductor import StepRun, step_run  # here, because it loads PyTorch's compiler, which takes seconds

        run, began = StepRun(weights), perf_counter()
        token = step_run.set(run)
        try:
            outputs = step(inputs)
        except Exception as error:
            if run.started is not None:  # the graph has stored keys and values, so the step can't run again
                raise
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        else:
            return StepResult(outputs, run.compilations, (run.started or began) - began if run.compilations else 0.0)
        finally:
            step_run.reset(token)
        self._step, self.failed = None, why  # here, where the error is gone, and with it what its frames held
        return StepResult(forward(**inputs), run.compilations, perf_counter() - began)

    def _compiled(self, forward: Callable[..., Any]) -> Callable[[dict[str, Any]], Any] | None:
        from .inductor import backend, missing_compiler

        self.failed = self.failed or missing_compiler()
        if self.failed is None and self._step is None:
            self._step = torch.compile(_own_code(forward), backend=backend, fullgraph=True, dynamic=True)
        return self._step


def _own_code(forward: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """A function that calls `forward`, with a code object of its own.

    PyTorch keeps at most 8 graphs of one code object, and drops them with it. Transformers' decorators give the
    forwards of all models the same one.
    """

    def step(inputs: dict[str, Any]) -> Any:
        return forward(**inputs)

    return FunctionType(step.__code__.replace(), globals(), "step", None, step.__closure__)
