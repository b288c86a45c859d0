"""The end of a generate() call: it hands back memory and graphs, and reports. A failure here leaves the result."""

from __future__ import annotations

import logging

from ..cache_utils import RelayCache
from ..compiled import CompiledRunner
from ..graphs.active import active_runner
from ..model.upstream.models import has_loops_of_its_own, is_stocks
from ..reasons import Reason, Refusal
from ..report import RelayReport
from .call import GenerateCall
from .facts import CallFacts
from .notices import JOINED, guarded, tell

logger = logging.getLogger("relay_hf")


def finish(call: GenerateCall) -> RelayReport:
    """Hand back the cache and the graph of a call, and report the call; no Exception leaves this."""
    report = call.report or RelayReport.of(without_prefill(call.facts))
    report.graph_steps = report.graph_bytes = report.compiled_steps = report.compile_bytes = 0
    report.compile_seconds = 0.0
    runner = call.runner
    with guarded("the RelayCache given to this call could not take what was generated, and is empty"):
        _fill_given(call)
    if report.relayed:
        report.backend = "+".join(sorted(call.backends)) or "model"
        report.linears, report.linears_reason = call.facts.linears.outcome
    if call.cache is not None and report.relayed:
        with guarded("the KV of this call could not be counted"):
            _count(call.cache, report)
    if runner is not None:
        call.let_go()
        with guarded("the CUDA graph of this call could not be given back"):
            runner.finish()
        if report.relayed:
            report.graph_steps, report.graph_bytes = runner.replayed, runner.nbytes
            report.graph_reason = runner.reason
    compiled = active_runner.get()
    if isinstance(compiled, CompiledRunner) and report.relayed:
        report.compiled_steps, report.compile_seconds = compiled.compiled, compiled.seconds
        report.compile_bytes, report.compile_reason = compiled.nbytes, compiled.reason
    with guarded("the report of this call could not be logged"):
        logger.info("%r", report)
        tell(call.facts, report.reason, report.reason_source)
    return report


def without_prefill(facts: CallFacts) -> Refusal:
    """Why a call does not run the common prefill: its mode has none, or the model has code of its own for it."""
    model = facts.view.model
    if model.config.is_encoder_decoder:
        return Reason.ENCODER_DECODER.of()
    if facts.arguments.own_loop:
        return Reason.NO_COMMON_PREFILL.of()
    if not is_stocks(model, "generate"):  # of BLIP-2 and Kosmos-2, which generate by a model inside
        return Reason.OWN_GENERATE.of()
    return (Reason.OWN_LOOP if has_loops_of_its_own(model) else Reason.NO_COMMON_PREFILL).of()


def _count(cache: RelayCache, report: RelayReport) -> None:
    """Report the bytes of the call's cache, and whether it was changed meanwhile."""
    report.kv_bytes, report.kv_bytes_reserved = cache.nbytes(), cache.nbytes_reserved()
    report.kv_bytes_stock = cache.nbytes_stock()
    if cache.is_joined:
        report.reason += JOINED


def _fill_given(call: GenerateCall) -> None:
    """Fill the caller's RelayCache with the content of the DynamicCache that stood in for it."""
    if call.stand_in is None:
        return
    given, dynamic = call.stand_in
    try:
        given.adopt(dynamic, call.facts.view.context)
    except BaseException:
        given.reset()  # some of its layers hold all tokens, others none: it must not look like a cache to go on from
        raise
