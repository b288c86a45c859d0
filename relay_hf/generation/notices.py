"""Warnings in the log `relay_hf`: why calls of a model are left to stock, what serves no call, and failures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..model.device import is_out_of_memory
from ..reasons import Refusal, Source
from .facts import CallFacts
from .findings import ModelFindings

logger = logging.getLogger("relay_hf")

# The end of the reason of a call that gets a returned cache and is not relayed.
CONTINUED = "; continued on a DynamicCache"

# The end of the reason of a relayed call during which somebody has changed its cache.
JOINED = "; not after keys or values of its cache were changed"


def tell(facts: CallFacts, reason: str, source: Source | None) -> None:
    """Warn of a call that is left to stock, once for each model and reason; not if the call itself is the reason."""
    reason = reason.removesuffix(CONTINUED)
    if source in ("model", "transformers") and facts.findings.is_news(reason):
        what = type(facts.view.model).__name__
        more = "This is said once; model.relay.last has the reason of each call."
        logger.warning("relay_hf: a call of this %s goes on as stock: %s. %s", what, reason, more)


def tell_standing(model: object, findings: ModelFindings, refusal: Refusal) -> None:
    """Warn that no call of a model is relayed. Its calls do not say it again."""
    if findings.is_news(refusal):
        what = type(model).__name__
        logger.warning("relay_hf: no call of this %s is relayed: %s. All its calls go on as stock.", what, refusal)


def tell_short(tokens: int, least: int) -> None:
    """Warn that a warmed prefix serves no call: of a run so short none starts. Each warm() says it, as it is asked."""
    logger.warning(
        "relay_hf: a prefix of %d tokens serves no call, because min_prefix_length is %d. Warm a longer one, or lower "
        "it by patch_model(model, min_prefix_length=%d).",
        tokens,
        least,
        tokens,
    )


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Within it an Exception becomes a warning, so that the caller still gets the call's own result or exception."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # a handler of the log may raise too
            # Without its frames if memory is lacking: a log that keeps its records would hold the memory of the call.
            logger.warning("relay_hf: %s", what, exc_info=not is_out_of_memory(error))
