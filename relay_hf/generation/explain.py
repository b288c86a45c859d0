"""`model.relay.explain()`: the report that a generate() call would have, without running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..prefix import outline
from ..report import Explanation
from .call import DryCall
from .dry_run import dry_run

_IDS, _MASK = "input_ids", "attention_mask"


def read_arguments(
    inputs: Any, second: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """generate()'s arguments of those of `explain`: ids may be lists, and the mask may stand in the second place.

    Raises:
        ValueError: the ids are not `[rows, tokens]`.
        TypeError: there are two masks.
    """
    kwargs = dict(kwargs)
    if isinstance(second, Tensor):
        if kwargs.get(_MASK) is not None:
            raise TypeError(
                "explain() got two masks: in the second place, and as attention_mask. Leave one of them out."
            )
        kwargs[_MASK], second = second, None
    if kwargs.get(_IDS) is not None:
        kwargs[_IDS] = _ids(kwargs[_IDS])
    inputs = inputs if inputs is None else _ids(inputs)
    if args or second is not None:
        return (inputs, second, *args), kwargs
    return (() if inputs is None else (inputs,)), kwargs


def explain(call: DryCall, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
    """The report of a call that is not run."""
    outlook, view = dry_run(call, stock, args, kwargs), call.facts.view
    found = Explanation(**vars(outlook.report), tree=outline(outlook.decision.runs))
    if found.relayed:
        found.backend = "model" if view.architecture.own_attention else view.backend(call.facts.config.backend)
    return found


def _ids(inputs: Tensor | Sequence[Sequence[int]]) -> Tensor:
    # On the host: within torch.device("meta") their values could not be read.
    ids = inputs if isinstance(inputs, Tensor) else torch.as_tensor(inputs, device="cpu")
    if ids.dim() != 2 and not ids.is_floating_point():  # sound has more dimensions
        raise ValueError(f"input_ids must be [rows, tokens]; got {tuple(ids.shape)}.")
    return ids
