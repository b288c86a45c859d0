"""The token side: what rows share, what is kept between calls, and whether it still holds."""

from .find import Prompts, on_host
from .kept import KeptPrefix, Match
from .outline import outline
from .store import PrefixStore
from .tree import Run, divided, pruned, shared_runs, walk
from .witness import Witness, keeping_refusal

__all__ = [
    "KeptPrefix",
    "Match",
    "PrefixStore",
    "Prompts",
    "Run",
    "Witness",
    "divided",
    "keeping_refusal",
    "on_host",
    "outline",
    "pruned",
    "shared_runs",
    "walk",
]
