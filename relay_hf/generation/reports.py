"""What a user is told of a call that is left to stock: a warning, once for each reason of the model's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..model.device import is_out_of_memory
from ..reasons import Source
from .facts import CallFacts

logger = logging.getLogger("relay_hf")

# What the reason of a call ends with that goes on from a returned cache, but not relayed.
CONTINUED = "; continued on a DynamicCache"


def tell(facts: CallFacts, reason: str, source: Source | None) -> None:
    """Warn of a call that is left to stock, once for a model and a reason, unless the reason is its caller's own."""
    reason = reason.removesuffix(CONTINUED)
    if source in ("model", "transformers") and facts.findings.is_news(reason):
        what = type(facts.view.model).__name__
        more = "This is said once; model.relay.last has the reason of each call."
        logger.warning("relay_hf: a call of this %s goes on as stock: %s. %s", what, reason, more)


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Within it an Exception becomes a warning: what the caller is to see is how the call ended."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # a handler of the log may raise too
            # Without its frames where memory is lacking: a log that keeps its records would hold the whole call.
            logger.warning("relay_hf: %s", what, exc_info=not is_out_of_memory(error))
