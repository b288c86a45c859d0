"""The models and the texts of demo, notebooks and examples: a small chat model, and a support bot."""

from .model import RANDOM, Showcase, load, path_of
from .random_model import SIZES
from .script import options, timed, verdict
from .smollm2 import NAME as CHAT_MODEL
from .texts import (
    QUESTIONS,
    SYSTEM_PROMPT,
    document_chats,
    support_chats,
    support_prompts,
)

__all__ = [
    "CHAT_MODEL",
    "QUESTIONS",
    "RANDOM",
    "SIZES",
    "SYSTEM_PROMPT",
    "Showcase",
    "document_chats",
    "load",
    "options",
    "path_of",
    "support_chats",
    "support_prompts",
    "timed",
    "verdict",
]
