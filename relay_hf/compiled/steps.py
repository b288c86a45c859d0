"""The compiled decode steps of a model, kept between its calls."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from ..cache_utils import RelayCache
from ..config import RelayConfig
from ..model.compiling import compiled_parts
from ..model.device import ComputeContext
from ..model.fingerprint import keeping_refusal, make_up
from .reordered import ReorderedWeights
from .step import CompiledStep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model.view import ModelView

# Steps after which a compilation has paid. A Llama of 12 layers of 768 takes 10 to 14 s to compile, and then saves 6 to
# 10 ms of 50 to 30 a step where oneDNN computes its linear layers anyway (16 and 2 rows).
_PAYS = 1500
# States of the model (adapters, modes, settings) whose steps are kept, and compilations until all are dropped.
_KEPT, _MOST = 4, 8


class CompiledSteps:
    """A model's compiled decode steps, one for each state that it is in, and the reordered weights that they use.

    Args:
        model: the model.
        config: the options in force.

    Attributes:
        weights: the reordered weights.
    """

    def __init__(self, model: PreTrainedModel, config: RelayConfig) -> None:
        self._model, self._config = model, config
        self._lock = threading.Lock()
        self.weights = ReorderedWeights()
        self._made = 0  # steps so far that might have been compiled ones
        self.clear()

    def configure(self, config: RelayConfig) -> None:
        """Take other options, and drop what was compiled if it is wanted no more."""
        before, self._config = self._config, config
        if not self.wanted or before.linears != config.linears:
            self.clear()

    def clear(self) -> None:
        """Drop the compiled steps and the reordered weights."""
        with self._lock:
            self._kept: list[tuple[list[Hashable], CompiledStep]] = []  # the least recently used first
            self._compilations = 0
        self.weights.clear()

    @property
    def wanted(self) -> bool:
        """Whether the options ask for compiled steps."""
        return self._config.compile is not False

    @property
    def usable_weights(self) -> ReorderedWeights | None:
        """The reordered weights; None if the options have PyTorch compute linear layers."""
        return None if self._config.linears is False else self.weights

    def refusal(self, view: ModelView, own_loop: bool, cache: RelayCache) -> str | None:
        """Why no decode step of a call is compiled, or None."""
        if view.device.type != "cpu":
            return f"steps are compiled for a CPU alone, and the model is on {view.device.type}"
        if compiled_parts(view.modules):
            return "the model or a part of it is compiled already"
        if kept := keeping_refusal(self._model, view.modules):
            return str(kept)
        if view.has_other_hooks or _has_hooks(self._model, view.modules):
            return "a module has hooks"
        if self._config.trust:
            return "trust vouches for code of the model, which torch.compile may take for something else"
        if own_loop:
            return "the decoding loop is the caller's"
        if cache.state_layers or cache.rows.whole_rows:
            return "the model has recurrent layers or attention code of its own"
        if torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
            return "autocast or gradients are on"
        return None if cache.traceable else "attention takes other keys and values than the cache stores"

    def find(self, modules: Sequence[nn.Module]) -> CompiledStep:
        """The step for the model as it is now, compiled or to be compiled, and no copy of a weight that has changed."""
        state = [ComputeContext.of(self._model), *make_up(modules)]
        with self._lock:
            kept = next((kept for kept in self._kept if kept[0] == state), None)
            if kept is None:
                kept = state, CompiledStep()
                if self._compilations >= _MOST:
                    kept[1].failed = f"the model was compiled {_MOST} times, for as many states of it"
            else:
                self._kept.remove(kept)
            self._kept = [*self._kept, kept][-_KEPT:]
        self.weights.check()
        return kept[1]

    def pays(self, step: CompiledStep, left: int) -> bool:
        """Whether a step of a call that may make `left` more is to run compiled. Each time a step is counted."""
        self._made += 1
        return step.is_compiled or self._config.compile is True or self._made + left >= _PAYS

    def compiled(self, times: int) -> None:
        """Count compilations."""
        with self._lock:
            self._compilations += times


def _has_hooks(model: nn.Module, modules: Sequence[nn.Module]) -> bool:
    """Whether a module but the model itself has forward hooks, or all have: torch.compile does not watch them."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        return True
    return any((m._forward_hooks or m._forward_pre_hooks) and m is not model for m in modules)
