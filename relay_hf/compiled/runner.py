"""Runs the decode steps of one call by the model's compiled step, where that can be done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..attention.context import active_context
from ..attention.forward import enter, leave
from ..cache_utils import RelayCache
from ..graphs import GraphRunner
from ..model.upstream.names import given_caches
from ..model.view import ModelView
from .step import CompiledStep
from .steps import CompiledSteps


class CompiledRunner:
    """Runs the forwards of a call after its prefill. It stands around the runner of CUDA graphs.

    Args:
        steps: the model's compiled step.
        inner: the runner of the call's graphs.
        view: the model.
        backend: what the options name for attention.
        left: decode steps that the call may make.
        refusal: why no step may be compiled, or None; asked again before each step if `watched`.
        watched: code of the caller's runs between the steps, and may change the model.

    Attributes:
        compiled: number of steps that ran compiled.
        seconds: time that was spent on compiling (seconds).
        reason: why steps were not compiled; empty if they were.
    """

    def __init__(
        self,
        steps: CompiledSteps,
        inner: GraphRunner,
        view: ModelView,
        backend: str,
        left: int,
        refusal: Callable[[RelayCache], str | None],
        watched: bool,
    ) -> None:
        self._steps, self._inner, self._view, self._backend = steps, inner, view, backend
        self._left, self._refusal, self._watched = left, refusal, watched
        self._kept: CompiledStep | None = None
        self.compiled, self.seconds, self.reason = 0, 0.0, ""

    @property
    def pool(self) -> object:
        """The pool of graphs of the call's model."""
        return self._inner.pool

    @property
    def nbytes(self) -> int:
        """Bytes of the reordered weights, beside the plain ones."""
        return self._steps.weights.nbytes if self.compiled else 0

    def run(self, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """`forward(*args, **kwargs)`, or a compiled step that computes the same."""
        return self._inner.run(partial(self._step, forward), args, kwargs)

    def run_ahead(self, input_ids: Tensor) -> None:
        """Start the step that the loop will ask for next, if it is a graph."""
        self._inner.run_ahead(input_ids)

    def _step(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.reason or not self._inner.is_step(args, kwargs) or self._refuses(kwargs):
            return forward(*args, **kwargs)
        self._left -= 1
        if self._kept is None or not self._steps.pays(self._kept, self._left):
            return forward(*args, **kwargs)
        model = self._view.model
        entered, complete = enter(model, self._backend, (), kwargs), False
        inputs = kwargs if entered is None else entered[1]
        replaced = None
        try:
            outputs = self._run(self._kept, inputs)
            complete = True
        finally:
            replaced = leave(model, complete)
        return outputs if replaced is None else replaced

    def _refuses(self, kwargs: dict[str, Any]) -> bool:
        """Whether the step can't be compiled; `reason` says why. The first time, the model is looked at."""
        before = self._kept
        if before is not None and not self._watched:
            return False
        cache = next(cache for cache in given_caches(kwargs) if isinstance(cache, RelayCache))
        self.reason = self._refusal(cache) or ""
        if self.reason:
            return True
        self._kept = self._steps.find(self._view.modules)
        changed = before is not None and before is not self._kept
        self.reason = "the model was changed within the call" if changed else self._kept.failed or ""
        return bool(self.reason)

    def _run(self, step: CompiledStep, inputs: dict[str, Any]) -> Any:
        context, forward = active_context(), self._view.model.forward
        if context is None or not context.stores_late:
            self.reason = "the steps are not static: they read masks, or attention takes what the cache does not store"
            return forward(**inputs)
        result = step.run(forward, inputs, self._steps.usable_weights)
        self._steps.compiled(result.compilations)
        self.seconds += result.seconds
        self.reason = step.failed or ""
        self.compiled += not self.reason
        return result.outputs
