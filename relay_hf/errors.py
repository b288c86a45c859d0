"""relay_hf's own exceptions, and functions that make text from outside safe and short for a message."""

from __future__ import annotations

import reprlib

_short = reprlib.Repr()  # short, even for a long or deep value
_short.maxstring = _short.maxother = 60


class RelayError(RuntimeError):
    """relay_hf can't do what was asked exactly: some layer would attend to fewer, or to other, tokens than in stock.

    If this shows in the prefill or in the first decode step, `generate()` goes on as stock, with the reason in the
    report. The error is raised

    - by a forward, if it shows later, or if a RelayCache is used outside of a patched model;
    - by `warm`, `save` and `load`, if prefixes can't be kept, or none is kept;
    - by `unpatch_model` while the model generates;
    - by `patch_model` and `unpatch_model` for a shallow copy of a patched model;
    - by `patch_model`, if Transformers is not what relay_hf hooks into.
    """


class UnfitModelError(RelayError):
    """No forward of this model can be relayed until the model changes, because of what it is or its present state."""


class PrefixFileError(ValueError):
    """A file of kept prefixes that is damaged, of another format, or of another model."""


RECHOSEN = "the attention implementation was changed while the model ran"


class TokenIdError(ValueError):
    """A token id without an embedding in the model. Stock fails too; on a GPU no call works after that failure."""


def shown(value: object) -> str:
    """A value from a file as short text for an error."""
    return _short.repr(value)


def on_a_line(text: str) -> str:
    """A text on one line: characters that can't be printed are escaped, and a long text is cut."""
    return printable(text if len(text) <= 500 else f"{text[:497]}...")


def printable(text: object) -> str:
    """A text or a path with escapes for characters that can't be printed, such as bytes of a name that is not UTF-8."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(text))
