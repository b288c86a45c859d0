"""Starts the next decode step before generate()'s loop asks for it, so that device and host work at the same time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..model.upstream.names import CRITERIA, CRITERIA_POSITION
from .active import active_runner


class LookaheadCriterion(StoppingCriteria):
    """The last of a call's stopping criteria. It stops nothing, but starts the graph of the next step.

    The loop gives its criteria the new tokens, on the device, and then waits for the criteria's result, to see whether
    to stop. The next step already runs during this wait. Without it the device idles from the end of a step until the
    host launches the next.
    """

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """`[B]` bool, all False."""
        runner = active_runner.get()
        if runner is not None:
            runner.run_ahead(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def with_criterion(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """generate()'s named arguments, with a `LookaheadCriterion` behind the caller's own criteria.

    It is left out where the criteria are given by position.
    """
    if len(args) > CRITERIA_POSITION:
        return kwargs
    given = kwargs.get(CRITERIA)
    return {**kwargs, CRITERIA: StoppingCriteriaList([*(given or ()), LookaheadCriterion()])}
