"""A tiny Llama and prompts for it: what examples in the documentation run on, and what `relay-hf doctor` tries."""

from .prompts import PAD, VOCABULARY, prompts
from .tiny import tiny_model

__all__ = ["PAD", "VOCABULARY", "prompts", "tiny_model"]
