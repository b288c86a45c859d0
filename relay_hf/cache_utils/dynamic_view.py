"""What a RelayCache is as a DynamicCache: it turns into one, and its rows are joined when somebody has changed them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from transformers import DynamicCache, PreTrainedConfig

from ..model.upstream.caches import CacheLayerMixin, LinearAttentionLayer
from .layer import RelayLayer
from .row_layout import RowLayout
from .state_layer import StateLayer


class DynamicView(DynamicCache):
    """A cache of RelayLayers that answers as Transformers' cache does."""

    config: PreTrainedConfig
    rows: RowLayout
    traceable: bool
    is_joined = False  # the layers are Transformers' own

    def __new__(cls, config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """A DynamicCache of what iterating over caches gives: so torch gathers the caches of several replicas."""
        gathered = isinstance(config, Iterable) and not isinstance(config, PreTrainedConfig)
        return DynamicCache(config) if gathered else super().__new__(cls)

    def sort_layers(self) -> None:
        """Note which layers hold what."""
        self.kv_layers = {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, RelayLayer)}
        self.state_layers = {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, StateLayer)}
        self._sorted = [*self.layers]

    @property
    def is_compileable(self) -> bool:
        """False: generate() compiles the forward for any other cache of recurrent layers alone than a DynamicCache."""
        return False

    @property
    def is_linear(self) -> list[bool]:
        """Which layers are recurrent alone; before Transformers 5.24 that counted every kind that it did not know."""
        return [
            isinstance(each, LinearAttentionLayer) and not isinstance(each, CacheLayerMixin) for each in self.layers
        ]

    def take_over(self) -> None:
        """Let what somebody has written to keys and values count, and forget those that were read; before a use."""
        self.join_if_changed()
        if self.rows.shown:
            with self.rows.lock:
                self.rows.shown = False
                for layer in self.kv_layers.values():
                    layer.forget()

    def join_if_changed(self) -> None:
        """Go on as Transformers' own layers if keys or values were written to, or assigned, or layers replaced."""
        if self.rows.shown or self.layers != self._sorted:  # lists of the same layers are compared by identity
            with self.rows.lock:
                if self.is_changed():
                    self.join()

    def is_changed(self) -> bool:
        """Whether keys or values were written to or assigned, or layers replaced, since the cache was used last."""
        if self.layers != self._sorted:
            return True
        layers = self.kv_layers.values() if self.rows.shown else ()
        return any(not isinstance(layer, RelayLayer) or layer.is_changed() for layer in layers)

    def join(self) -> None:
        """Go on as Transformers' own layers, which hold whole rows."""
        with self.rows.lock:
            for layer in self.layers:
                if isinstance(layer, RelayLayer):
                    layer.become_stock()
            self.sort_layers()
            self.rows, self.is_joined, self.traceable = RowLayout(lock=self.rows.lock), True, False

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: after a change these are the joined rows."""
        self.join_if_changed()
        return {**vars(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy knows its own layers."""
        self.__dict__.update(state)
        self.sort_layers()

    def to_dynamic(self) -> DynamicCache:
        """The same content as a DynamicCache, which any model can use.

        Returns:
            A cache in the caller's layout, `[padding | prefix | own]` in every row: `[B, Hkv, L, D]` in each layer.
        """
        self.join_if_changed()
        dynamic = DynamicCache(config=self.config)
        dynamic.layers = [
            layer.to_stock() if isinstance(layer, (RelayLayer, StateLayer)) else copy.deepcopy(layer)
            for layer in self.layers
        ]
        return dynamic
