"""The model and the texts of demo, notebooks and examples: a small model built on the spot, and a support bot."""

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
