"""What Transformers does, beyond names and arguments, and from which version on it does so."""

from __future__ import annotations

from .version import MINOR

# A chunked prefill goes on behind what a returned cache holds. Before, it put all of a text through on top of that.
CHUNKS_GO_ON = MINOR >= 21

# Tokens that generate() makes where neither the call nor the model says how many.
DEFAULT_NEW_TOKENS = 20
