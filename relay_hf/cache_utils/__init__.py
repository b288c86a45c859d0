"""RelayCache: shared segments once, own KV per row. State only, no mathematics."""

from .cache import RelayCache
from .layer import RelayLayer
from .shared import SharedLayer

__all__ = ["RelayCache", "RelayLayer", "SharedLayer"]
