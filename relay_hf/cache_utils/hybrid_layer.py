"""A layer of a RelayCache that holds keys and values and a recurrent state too."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from ..model.upstream.caches import install_states, states_of, stock_layer
from .layer import RelayLayer
from .row_layout import RowLayout
from .state_layer import StateLayer, copy_state


class HybridLayer(StateLayer, RelayLayer):
    """A layer with attention and a recurrence side by side (Falcon-H1, Zamba), or convolutions before attention.

    Args:
        rows: the layout that all layers of the cache share.
        sliding_window: the window of stock's layer (tokens), or None.
        number_of_states: convolutions and recurrences that the layer has.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, rows: RowLayout, sliding_window: int | None = None, number_of_states: int = 1) -> None:
        StateLayer.__init__(self, number_of_states)
        RelayLayer.__init__(self, rows, sliding_window)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Transformers passes keys and values by position, and states by name."""
        kind = RelayLayer if args else StateLayer
        kind.lazy_initialization(self, *args, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """Crop both parts. A state can be cropped only if the layer records its past."""
        StateLayer.crop(self, tokens_to_remove)
        RelayLayer.crop(self, tokens_to_remove)

    def reset(self) -> None:
        """Back to an empty layer."""
        if not self.changed_alone("reset"):
            StateLayer.reset(self)
            RelayLayer.reset(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows' own KV and states."""
        if not self.changed_alone("reorder_cache", beam_idx):
            StateLayer.reorder_cache(self, beam_idx)
            RelayLayer.reorder_cache(self, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        if not self.changed_alone("batch_repeat_interleave", repeats):
            StateLayer.batch_repeat_interleave(self, repeats)
            RelayLayer.batch_repeat_interleave(self, repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        if not self.changed_alone("batch_select_indices", indices):
            StateLayer.batch_select_indices(self, indices)
            RelayLayer.batch_select_indices(self, indices)

    def become_stock(self, removed: int = 0) -> None:
        """Become Transformers' own layer of both. Its states are the very tensors that they were."""
        states = states_of(self)
        RelayLayer.become_stock(self, removed)
        install_states(self, *states)

    def to_stock(self, removed: int = 0) -> Any:
        """The same content in a new layer of Transformers' own, without the last `removed` columns."""
        stock = RelayLayer.to_stock(self, removed)
        copy_state(self, stock)
        return stock

    def _empty_stock(self) -> Any:
        return stock_layer(self.sliding_window, self.number_of_states)

    def get_max_length(self) -> int:
        """Stock's answer for both, which is that for its states."""
        return -1

    def __deepcopy__(self, memo: dict) -> HybridLayer:
        new = HybridLayer(copy.deepcopy(self.rows, memo), self.sliding_window, self.number_of_states)
        self._copy_into(new)
        copy_state(self, new)
        return new
