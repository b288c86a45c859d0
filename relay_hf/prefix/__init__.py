"""The token side: what rows share, what is kept between calls, and whether it still holds."""

from .files import PrefixFile, PrefixFileError, StoredPrefix, write
from .find import Prompts
from .kept import KeptPrefix, Match, Planned, overhead_bytes
from .outline import outline
from .store import PrefixStore
from .tensor_file import is_there
from .tree import Run, divided, pruned, shared_runs, walk

__all__ = [
    "KeptPrefix",
    "Match",
    "Planned",
    "PrefixFile",
    "PrefixFileError",
    "PrefixStore",
    "Prompts",
    "Run",
    "StoredPrefix",
    "divided",
    "is_there",
    "outline",
    "overhead_bytes",
    "pruned",
    "shared_runs",
    "walk",
    "write",
]
