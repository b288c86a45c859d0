"""RelayCache, a Transformers cache that holds shared tokens once and each row's own tokens. It computes nothing."""

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
