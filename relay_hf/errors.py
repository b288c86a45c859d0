"""The errors that relay_hf raises of its own, and how their messages show what came from outside."""

from __future__ import annotations

import reprlib

_short = reprlib.Repr()  # neither long nor deep, however long and deep the value is
_short.maxstring = _short.maxother = 60


class RelayError(RuntimeError):
    """A relayed forward can't keep its promise: some layer would attend to less, or to other, than stock's would.

    `generate()` goes on as stock where that shows in the prefill, with the reason in the report. It is raised where it
    shows later, where a RelayCache is used outside of a patched model, by `warm` for a prefix that can't be kept, by
    `unpatch_model` while the model generates, by both it and `patch_model` for a shallow copy of a patched model, and
    by `patch_model` where Transformers is not what relay_hf hooks into.
    """


class UnfitModelError(RelayError):
    """The model itself is such that none of its forwards can be relayed."""


class UnfitForwardError(RelayError):
    """The model, as it is now, is such that this forward can't be relayed; another one may be."""


class PrefixFileError(ValueError):
    """A file of kept prefixes that is damaged, of another format, or of another model."""


RECHOSEN = "the attention implementation was changed while the model ran"


class TokenIdError(ValueError):
    """A token id that the model has no embedding for. Stock would fail too, on a GPU for good and without a name."""


def shown(value: object) -> str:
    """A value that came from a file, for an error: short, whatever it is."""
    return _short.repr(value)


def on_a_line(text: str) -> str:
    """A text on one line: signs that can't be printed are escaped, and a long text is cut."""
    return printable(text if len(text) <= 500 else f"{text[:497]}...")


def printable(text: object) -> str:
    """A text, or a path, with signs that can't be printed escaped: such as the bytes of a name that is not UTF-8."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(text))
