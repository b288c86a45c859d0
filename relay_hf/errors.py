"""The errors that relay_hf raises of its own."""

from __future__ import annotations


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


RECHOSEN = "the attention implementation was changed while the model ran"


class TokenIdError(ValueError):
    """A token id that the model has no embedding for. Stock would fail too, on a GPU for good and without a name."""
