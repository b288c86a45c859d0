"""RelayCache: what rows share once, and what each row has of its own. State only, no mathematics."""

from .cache import RelayCache
from .layer import RelayLayer
from .rows import RowLayout
from .shared import SharedKV, SharedLayer, SharedRun
from .state import RecurrentState, StateLayer

__all__ = [
    "RecurrentState",
    "RelayCache",
    "RelayLayer",
    "RowLayout",
    "SharedKV",
    "SharedLayer",
    "SharedRun",
    "StateLayer",
]
