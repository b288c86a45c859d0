"""The token side: what rows share, what is kept between calls, and whether it still holds."""

from .find import Prompts, common_length
from .history import RecentPrompts
from .store import KeptPrefix, PrefixStore
from .tree import Run, pruned, shared_runs, walk
from .witness import Witness, keeping_refusal

__all__ = [
    "KeptPrefix",
    "PrefixStore",
    "Prompts",
    "RecentPrompts",
    "Run",
    "Witness",
    "common_length",
    "keeping_refusal",
    "pruned",
    "shared_runs",
    "walk",
]
