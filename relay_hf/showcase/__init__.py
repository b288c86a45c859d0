"""What demo, notebooks and examples show things on: a support bot's texts, and a small model built on the spot."""

from .model import SIZES, Showcase, load
from .texts import QUESTIONS, SYSTEM_PROMPT, support_prompts

__all__ = ["QUESTIONS", "SIZES", "SYSTEM_PROMPT", "Showcase", "load", "support_prompts"]
