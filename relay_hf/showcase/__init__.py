"""What demo, notebooks and examples show things on: a support bot's texts, and a small model built on the spot."""

from .model import SIZES, Showcase, load
from .script import options, timed, verdict
from .texts import QUESTIONS, SYSTEM_PROMPT, document_prompts, support_prompts

__all__ = [
    "QUESTIONS",
    "SIZES",
    "SYSTEM_PROMPT",
    "Showcase",
    "document_prompts",
    "load",
    "options",
    "support_prompts",
    "timed",
    "verdict",
]
