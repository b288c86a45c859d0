"""The end of a generate() call: what it hands back, and its report. Whatever fails here, its result stands."""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..model.device import ComputeContext, is_out_of_memory
from ..model.upstream.models import has_loops_of_its_own
from ..reasons import Reason, Refusal, Source
from ..report import RelayReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..relay import Relay
    from .call import GenerateCall

logger = logging.getLogger("relay_hf")

# What the reason of a call ends with that goes on from a returned cache, but not relayed.
CONTINUED = "; continued on a DynamicCache"


def finish(relay: Relay, call: GenerateCall) -> RelayReport:
    """Hand back what a call has used, and report it; no Exception leaves this."""
    report = call.report or RelayReport.untouched(_without_prefill(relay, call))
    stepper = call.stepper
    with guarded("the RelayCache given to this call could not take what was generated, and is empty"):
        _fill_given(relay, call)
    if report.relayed:
        report.backend = "+".join(sorted(call.backends)) or "model"
    if call.cache is not None and report.relayed:
        with guarded("the KV of this call could not be counted"):
            report.kv_bytes, report.kv_bytes_stock = call.cache.nbytes(), call.cache.nbytes_stock()
    if stepper is not None:
        with guarded("the CUDA graph of this call could not be given back"):
            stepper.finish()
        if report.relayed:
            report.graph_steps, report.graph_bytes = stepper.replayed, stepper.nbytes
            report.graph_reason = stepper.reason
    with guarded("the report of this call could not be logged"):
        logger.info("%s", report)
        tell(relay, report.reason, report.reason_source)
    return report


def _without_prefill(relay: Relay, call: GenerateCall) -> Refusal:
    """Why a call's prefill was not seen: its mode has none in common, or the model's own loop leaves it out."""
    own = not call.own_loop and has_loops_of_its_own(relay.model)
    return (Reason.OWN_LOOP if own else Reason.NO_COMMON_PREFILL).of()


def tell(relay: Relay, reason: str, source: Source | None) -> None:
    """Warn of a call that is left to stock, once for a model and a reason, unless the reason is its caller's own."""
    reason = reason.removesuffix(CONTINUED)
    if source in ("model", "transformers") and relay.is_news(reason):
        what = type(relay.model).__name__
        more = "This is said once; model.relay.last has the reason of each call."
        logger.warning("relay_hf: a call of this %s goes on as stock: %s. %s", what, reason, more)


def _fill_given(relay: Relay, call: GenerateCall) -> None:
    """The caller's RelayCache, with what stood in for it."""
    if call.stand_in is None:
        return
    given, dynamic = call.stand_in
    try:
        given.adopt(dynamic, ComputeContext.of(relay.model))
    except BaseException:
        given.reset()  # some of its layers hold all, others nothing: it must not look as if it could be gone on from
        raise


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Within it an Exception becomes a warning: what the caller is to see is how the call ended."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # a handler of the log may raise too
            # Without its frames where memory is lacking: a log that keeps its records would hold the whole call.
            logger.warning("relay_hf: %s", what, exc_info=not is_out_of_memory(error))
