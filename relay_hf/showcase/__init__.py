"""The models and the texts of demo, notebooks and examples: a small chat model, and a support bot."""

from .model import RANDOM, Showcase, load
from .random_model import SIZES
from .script import options, timed, verdict
from .texts import (
    QUESTIONS,
    SYSTEM_PROMPT,
    as_text,
    document_chats,
    document_prompts,
    support_chats,
    support_prompts,
)

__all__ = [
    "QUESTIONS",
    "RANDOM",
    "SIZES",
    "SYSTEM_PROMPT",
    "Showcase",
    "as_text",
    "document_chats",
    "document_prompts",
    "load",
    "options",
    "support_chats",
    "support_prompts",
    "timed",
    "verdict",
]
