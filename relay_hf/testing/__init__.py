"""A tiny Llama and prompts for it, which the examples of the documentation and `relay-hf doctor` use."""

from .prompts import PAD, VOCABULARY, prompts
from .tiny import tiny_model

__all__ = ["PAD", "VOCABULARY", "prompts", "tiny_model"]
