"""generate() of a patched model: Transformers' own, with a report at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graphs import with_criterion
from ..reasons import Reason
from ..report import RelayReport
from .call import GenerateCall
from .finish import finish
from .first_step import learn_from_step


def generate(call: GenerateCall, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `stock`, the model's own generate(), returns; `call.report` says by then what the call did."""
    arguments = call.facts.arguments
    with call.facts.graphs.in_the_way() as used:
        if used and not arguments.own_loop and not arguments.names_cache:
            kwargs = with_criterion(args, kwargs)
        try:
            outputs = call.with_given_cache(stock(*args, **kwargs))
            if call.runner is not None:
                call.runner.check()
            call.keep_row()
            return outputs
        except BaseException as error:
            call.report = call.report or RelayReport.of(Reason.RAISED_IN_CALL.of(error=type(error).__name__))
            if call.first_step is not None and call.first_step.raised and isinstance(error, Exception):
                learn_from_step(call, error)
            raise
        finally:
            call.report = finish(call)
