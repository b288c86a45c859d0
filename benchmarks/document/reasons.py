"""The table of all reason codes, from the table of reasons itself."""

from __future__ import annotations

import re

from relay_hf.reasons import Reason

from .markdown import table


def codes() -> str:
    """Code, source and words of each reason; dots stand for what depends on the call."""
    return table(["code", "source", "words"], [[f"`{each.code}`", each.source or "", _words(each)] for each in Reason])


def _words(reason: Reason) -> str:
    words = re.sub(r"\{[^}]*\}", "...", reason.words.removesuffix("{more}"))
    return f"`{words}`"


TABLES = {"reason-codes": codes}
