"""Prefixes: the runs that a batch's rows share, the prefixes that are kept between calls, and their files."""

from ..errors import PrefixFileError
from .entry import PrefixEntry
from .file import PrefixFile, is_there, write
from .kept_prefix import KeptPrefix, Match, Planned, overhead_bytes
from .outline import outline
from .prompts import Prompts
from .store import PrefixStore
from .tree import PrefixNode, divided, pruned, shared_runs, walk

__all__ = [
    "KeptPrefix",
    "Match",
    "Planned",
    "PrefixEntry",
    "PrefixFile",
    "PrefixFileError",
    "PrefixNode",
    "PrefixStore",
    "Prompts",
    "divided",
    "is_there",
    "outline",
    "overhead_bytes",
    "pruned",
    "shared_runs",
    "walk",
    "write",
]
