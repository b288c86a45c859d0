"""The prefill hook: it takes generate()'s prefill over, and fills a RelayCache with the prompts of the call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from ..cache_utils import RelayCache
from ..compiled import CompiledRunner
from ..errors import RECHOSEN, RelayError, TokenIdError, UnfitModelError
from ..graphs import GraphRunner
from ..graphs.active import active_runner
from ..model.device import is_out_of_memory
from ..model.upstream.names import ENCODER_OUTPUTS
from ..report import RelayReport
from .call import FirstStep, GenerateCall
from .decide import decide
from .decision import Decision
from .facts import PrefillInputs
from .findings import failure_of
from .first_step import run_again
from .forward_rows import forward_by_length, forward_rows
from .lay_out import lay_out
from .notices import guarded, tell
from .returned_cache import go_on
from .row_recorder import RowRecorder

logger = logging.getLogger("relay_hf")


def prefill(call: GenerateCall, stock: Callable[..., Any], asked: PrefillInputs) -> Any:
    """generate()'s prefill, with what rows share computed once; `stock` is the model's own `_prefill`."""
    facts, model_kwargs = call.facts, asked.inputs
    cache_name = facts.view.cache_name
    given = model_kwargs.get(cache_name)
    if isinstance(given, RelayCache) and given.is_filled:
        call.report = go_on(call, given, asked)
        call.cache = given if call.report.relayed else None
        if call.report.relayed:
            asked.drop_types()
        outputs = stock(*asked)
        _hand_over(call, asked)
        call.first_step = FirstStep(partial(run_again, stock, asked, None))
        return outputs
    unfit = unforeseen = lacking = False
    decision = Decision()
    try:
        decision = decide(facts, asked)
        facts.store.touch(decision.matches)
        if decision.relays:
            outputs = _relayed(call, decision, asked)
            _hand_over(call, asked)
            call.first_step = FirstStep(partial(run_again, stock, asked, dict(model_kwargs)))
            asked.drop_types()  # last, so that after a failure they are still stock's inputs
            model_kwargs[cache_name] = call.cache
            return outputs
    except TokenIdError:
        raise
    except Exception as error:
        # The error itself is dropped, because its frames hold allocated memory that stock may need.
        lacking = is_out_of_memory(error)
        if call.rechosen and not lacking:
            error = RelayError(RECHOSEN)  # whatever else was raised, the model is not the cause
        unfit = isinstance(error, UnfitModelError)
        unforeseen = not (lacking or isinstance(error, RelayError))
        if isinstance(given, RelayCache):
            given.reset()  # it was empty, and some layers may have stored tokens before the failure
        refused = failure_of(error, lacking)
        decision = decision.refuse(refused)
        if lacking:
            logger.warning("relay_hf: the call goes on as stock: %s", refused)
        with guarded("the reason why this call goes on as stock could not be logged"):
            tell(facts, refused, refused.source)
    finally:
        call.capture = None
    call.cache = call.recorder = None
    if lacking:
        facts.free_memory()
    call.report = counted(decision.report(), asked)
    if isinstance(given, RelayCache):
        model_kwargs[cache_name] = call.stand_in_for(given)
    outputs = stock(*asked)
    # Where stock fails too, the caller sees stock's own error, and the model does not count as unfit.
    if decision.refused is not None and (unfit or unforeseen):
        facts.findings.learn(decision.refused, facts.view.modules, sure=unfit)
    return outputs


def _hand_over(call: GenerateCall, asked: PrefillInputs) -> None:
    """End the prefill: all later forwards of the call are decode steps of generate()'s loop."""
    facts, own_loop = call.facts, call.facts.arguments.own_loop
    call.masks_known = not own_loop
    if call.cache is None:
        return
    config = asked.generation_config
    steps = max((config.max_length or 0) - asked.input_ids.shape[1] - 1, 0)  # one token is the prefill's
    runner = call.runner = GraphRunner(
        facts.graphs,
        call,
        facts.view.modules,
        call.cache,
        steps,
        facts.graphs.refusal(call.cache, facts.view.modules, own_loop),
        ahead=(config.num_beams or 1) == 1,  # beams are reordered before they are fed
    )
    active_runner.set(runner)
    if facts.compiled.wanted:
        refusal = partial(facts.compiled.refusal, facts.view, own_loop)
        watched = facts.arguments.callers_code
        compiled = CompiledRunner(facts.compiled, runner, facts.view, facts.config.backend, steps, refusal, watched)
        active_runner.set(compiled)


def _relayed(call: GenerateCall, decision: Decision, asked: PrefillInputs) -> Any:
    """A relayed prefill: the rows' own tokens go through the model behind the runs that they share."""
    facts, prompts = call.facts, decision.prompts
    cache, shared = lay_out(call, decision, asked)
    call.cache = cache
    call.report = decision.report()
    recorder = None
    if decision.keep_row:
        steps_alike = facts.view.architecture.steps_alike
        goes_on = steps_alike and not prompts.holes and not facts.arguments.callers_code
        shared_length = decision.shared_lengths[0]
        recorder = RowRecorder(facts, cache, prompts.row(0), shared_length, goes_on, decision.fingerprint)
        call.capture = recorder.expanded
    if cache.state_layers:  # filled group by group
        outputs = forward_by_length(call, asked, cache, shared)
        call.cache = cache
    else:
        outputs = forward_rows(facts, asked.input_ids, asked.inputs, cache, cache.rows.offset, asked.chunk)
    call.recorder = recorder
    if recorder is not None and recorder.ends_with_prompt:
        call.keep_row()
    return outputs


def counted(report: RelayReport, asked: PrefillInputs) -> RelayReport:
    """The report, with the rows and tokens of a call that was refused before its prompts were read."""
    input_ids, mask = asked.input_ids, asked.inputs.get("attention_mask")
    if report.rows is None and input_ids.dim() == 2:
        embedded = asked.inputs.get("inputs_embeds")  # in the place of ids, of which there are none then
        columns = (input_ids if embedded is None else embedded).shape[1]
        report.rows = len(input_ids)
        if asked.inputs.get(ENCODER_OUTPUTS) is not None:  # the prompt has gone through the encoder
            return report
        report.prompt_tokens_computed = len(input_ids) * columns if mask is None else int(mask.sum())
    return report
