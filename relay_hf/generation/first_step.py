"""The first decode step of a relayed call, run again by stock if the model takes another way for a single token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import RelayError, UnfitModelError
from ..graphs.active import active_runner
from ..model.device import is_out_of_memory
from ..model.upstream.models import has_loops_of_its_own
from ..reasons import Reason
from .call import GenerateCall
from .facts import PrefillInputs
from .findings import failure_of


def run_again(
    stock: Callable[..., Any],
    asked: PrefillInputs,
    before: dict[str, Any] | None,
    call: GenerateCall,
    missed: UnfitModelError,
    step: Mapping[str, Any],
) -> Any:
    """Stock's outputs of the step, after stock's prefill. From here on the call and the model are left to stock.

    Args:
        stock: the model's own `_prefill`.
        asked: the arguments of the prefill. `asked.inputs` is the dictionary with which generate()'s loop goes on.
        before: what `asked.inputs` held when the prefill began, with stock's own empty cache; None if the call goes on
            from a returned cache.
        call: the call.
        missed: the error that says what the relayed step did not attend to.
        step: the step's arguments by name, as the loop gave them.

    Raises:
        UnfitModelError: `missed`. A returned cache does not tell what it held before. A decoding loop that is not
            Transformers' may hold the cache in ways of its own. Hooks on the model itself would run twice.
    """
    facts, relayed, report = call.facts, call.cache, call.report
    view, refused = facts.view, failure_of(missed)
    other_loop = facts.arguments.own_loop or has_loops_of_its_own(view.model) or view.has_other_hooks
    if before is None or other_loop or relayed is None or report is None:
        facts.findings.learn(refused, view.modules, sure=True)
        raise missed
    call.let_go()
    call.runner = None
    active_runner.set(None)
    relayed.reset()  # stock may need its memory
    if before[view.cache_name] is relayed:
        before[view.cache_name] = call.stand_in_for(relayed)
    dynamic = asked.inputs[view.cache_name] = before[view.cache_name]
    call.report = report.refuse(refused)
    stock(*asked._replace(inputs=before))
    outputs = view.model(**{name: dynamic if value is relayed else value for name, value in step.items()})
    facts.findings.learn(refused, view.modules, sure=True)  # last: where stock fails too, the model is not unfit
    return outputs


def learn_from_step(call: GenerateCall, error: Exception) -> None:
    """Note that the relayed first decode step raised, in code of the model's own. Its outputs can't be replaced."""
    if not isinstance(error, RelayError) and not is_out_of_memory(error):
        why = Reason.STEP_RAISED.of(error=type(error).__name__, message=str(error).partition("\n")[0])
        call.facts.findings.learn(why, call.facts.view.modules, sure=False)
