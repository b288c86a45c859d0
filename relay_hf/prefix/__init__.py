"""The token side: what rows share, what is kept between calls, and whether it still holds."""

from ..errors import PrefixFileError
from .contents import PLAIN
from .digests import digest_of_all
from .file import PrefixFile, StoredPrefix, is_there, write
from .find import Prompts, on_host
from .kept import KeptPrefix, Match, Planned, beside
from .module_state import PlaceInModel, adapter_state, all_modules
from .outline import outline
from .store import PrefixStore
from .tree import Run, divided, pruned, shared_runs, walk
from .witness import Witness, keeping_refusal

__all__ = [
    "PLAIN",
    "KeptPrefix",
    "Match",
    "PlaceInModel",
    "Planned",
    "PrefixFile",
    "PrefixFileError",
    "PrefixStore",
    "Prompts",
    "Run",
    "StoredPrefix",
    "Witness",
    "adapter_state",
    "all_modules",
    "beside",
    "digest_of_all",
    "divided",
    "is_there",
    "keeping_refusal",
    "on_host",
    "outline",
    "pruned",
    "shared_runs",
    "walk",
    "write",
]
