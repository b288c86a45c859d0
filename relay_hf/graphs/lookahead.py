"""Starting the next step before the loop asks for it: while the host goes through the loop, the device computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..model.upstream.names import CRITERIA, CRITERIA_POSITION
from .active import active_runner


class LookaheadCriterion(StoppingCriteria):
    """The last of a call's stopping criteria. It stops nothing: it starts the next step's graph.

    The loop shows its criteria the new tokens, which are on the device by then, and goes on to wait for them, to see
    whether it is to stop. The step that follows, if one does, is under way meanwhile.
    """

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """`[B]` bool, all False."""
        runner = active_runner.get()
        if runner is not None:
            runner.run_ahead(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def with_criterion(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """generate()'s named arguments, with a `LookaheadCriterion` behind the caller's own criteria, which stay.

    Without it where the criteria are given by position.
    """
    if len(args) > CRITERIA_POSITION:
        return kwargs
    given = kwargs.get(CRITERIA)
    return {**kwargs, CRITERIA: StoppingCriteriaList([*(given or ()), LookaheadCriterion()])}
