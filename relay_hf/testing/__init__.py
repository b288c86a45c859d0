"""Tiny models of every model type and prompts for them, for tests and examples."""

from relay_hf.testing.prompts import prompts
from relay_hf.testing.sizes import FAMILIES, PAD, SIZES, UNBUILDABLE, VOCABULARY
from relay_hf.testing.tiny import tiny_model

__all__ = ["FAMILIES", "PAD", "SIZES", "UNBUILDABLE", "VOCABULARY", "prompts", "tiny_model"]
