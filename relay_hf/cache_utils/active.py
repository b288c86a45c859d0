"""The protocol between a RelayCache and the forward that runs with it.

Transformers hands a cache the new keys and values of a layer, and nothing else. So a ContextVar holds the forward that
runs with a RelayCache, and the cache and every attention layer find it there. Each thread sees its own forward. Outside
of a forward the variable is None.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from .layer import RelayLayer


class ActiveForward(Protocol):
    """A forward that runs with a RelayCache."""

    @property
    def cache(self) -> object:
        """The RelayCache that the forward reads and writes."""

    @property
    def stores_late(self) -> bool:
        """Whether a layer's attention stores its keys and values, instead of the cache when it is handed them."""

    def saw_update(self, layer_idx: int, keys: Tensor) -> None:
        """Note that a layer's keys are known, and that its attention is handed `keys`."""

    def whole_rows(self, layer: RelayLayer) -> tuple[Tensor, Tensor]:
        """Keys and values of whole rows, shared ones included, for attention code that is a model's own."""


active_forward: ContextVar[ActiveForward | None] = ContextVar("relay_hf_active_forward", default=None)
