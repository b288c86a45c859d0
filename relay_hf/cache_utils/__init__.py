"""RelayCache: what rows share once, and what each row has of its own. State only, no mathematics."""

from .cache import RelayCache
from .layer import RelayLayer
from .prefix_kv import LayerKV, LayerState, PrefixKV
from .row_layout import RowLayout
from .state_layer import RecurrentState, StateLayer

__all__ = [
    "LayerKV",
    "LayerState",
    "PrefixKV",
    "RecurrentState",
    "RelayCache",
    "RelayLayer",
    "RowLayout",
    "StateLayer",
]
