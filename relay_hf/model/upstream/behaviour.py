"""Behaviour of Transformers that differs between its versions, with the version from which it holds."""

from __future__ import annotations

from .version import MINOR

# A chunked prefill starts after the tokens that a returned cache holds. Before, it put the whole text through again.
CHUNKS_GO_ON = MINOR >= 21
