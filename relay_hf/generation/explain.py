"""`model.relay.explain()`: the report that a generate() call would have, without running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..prefix import outline
from ..report import Explanation
from .call import DryCall
from .dry_run import dry_run


def explain(call: DryCall, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
    """The report of a call that is not run."""
    outlook, view = dry_run(call, stock, args, kwargs), call.facts.view
    found = Explanation(**vars(outlook.report), tree=outline(outlook.decision.runs))
    if found.relayed:
        found.backend = "model" if view.architecture.own_attention else view.backend(call.facts.config.backend)
    return found
