"""The Transformers cache that holds shared segments beside each row's own KV."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..frame import RelayError, active_frame
from .layer import RelayLayer, RowLayout
from .shared import SharedLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class RelayCache(Cache):
    """A cache whose rows share segments of KV.

    Made by a patched model's `generate()`; or by hand, empty, and given to it as `past_key_values`. Only a patched
    model can use it: every other model would attend to each row's own tokens alone, so that raises.

    Args:
        config: the model's configuration; it says which layers there are.

    Attributes:
        context: device, dtype and autocast under which the cache was filled, by generate().

    Raises:
        ValueError: a layer of the model keeps something else than keys and values per token.
    """

    layers: list[RelayLayer]

    def __init__(self, config: PreTrainedConfig) -> None:
        template = DynamicCache(config=config)
        unfit = unsupported_layer(template)
        if unfit is not None:
            raise ValueError(f"config describes a model that a RelayCache can't hold: {unfit}.")
        self.config = config
        self.rows = RowLayout()
        self.context: Hashable = None
        layers = [RelayLayer(self.rows, getattr(layer, "sliding_window", None)) for layer in template.layers]
        super().__init__(layers=layers)

    def share(self, layers: list[SharedLayer] | None, rows: RowLayout, context: Hashable = None) -> None:
        """Start the (empty) cache with the layout of the rows and, if any, a segment that all of them use."""
        self.rows, self.context = rows, context
        for layer in self.layers:
            layer.rows = rows
        for layer, shared in zip(self.layers, layers or (), strict=False):
            layer.shared = [shared]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store own KV of a layer and return the layer's own KV; the segments reach attention by themselves.

        Raises:
            RelayError: not inside a forward of a patched model that uses this cache.
        """
        frame = active_frame.get()
        if frame is None or frame.cache is not self:
            raise RelayError(
                "this RelayCache was updated outside a forward of a model patched by relay_hf, where its shared prefix "
                "would be left out of attention. Patch the model with relay_hf.patch_model(model), or pass "
                "past_key_values.to_dynamic()."
            )
        return self.layers[layer_idx].update(key_states, value_states)

    @property
    def is_shared(self) -> bool:
        """Whether any segment is shared."""
        return any(layer.shared for layer in self.layers)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` own tokens of every row (0 or negative)."""
        super().crop(tokens_to_remove)
        if self.rows.holes is not None:
            self.rows.holes = self.rows.holes[:, : self.layers[0].own_length]

    def reset(self) -> None:
        """Back to an empty cache: no segments, no own KV."""
        super().reset()
        self.rows = RowLayout()
        for layer in self.layers:
            layer.rows = self.rows

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows' own KV. Segments never move: beams stay within the rows of one prompt."""
        super().reorder_cache(beam_idx)
        self._map_row_state(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._map_row_state(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices` (positions, or a `[B]` bool mask)."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        super().batch_select_indices(indices)
        self._map_row_state(lambda state: state[indices.to(state.device)])

    def _map_row_state(self, change) -> None:  # type: ignore[no-untyped-def]
        rows = self.rows
        rows.own_start = None if rows.own_start is None else change(rows.own_start)
        rows.holes = None if rows.holes is None else change(rows.holes)

    def nbytes(self) -> int:
        """Bytes of the segments, each once, and of the own buffers with their slack."""
        tensors = [t for layer in self.layers for part in layer.shared for t in part.tensors()]
        tensors += [t for layer in self.layers for t in layer.own_tensors()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def nbytes_stock(self) -> int:
        """Bytes that a DynamicCache of the same rows and columns holds."""
        total = 0
        for layer in self.layers:
            for part in layer.own_tensors():
                length = layer.get_seq_length()
                if layer.sliding_window is not None:
                    length = min(length, layer.sliding_window - 1)
                total += part.shape[0] * part.shape[1] * length * part.shape[3] * part.element_size()
        return total

    def to_dynamic(self) -> DynamicCache:
        """The same content as a DynamicCache in the caller's layout, `[padding | prefix | own]` in every row."""
        dynamic = DynamicCache(config=self.config)
        for source, target in zip(self.layers, dynamic.layers, strict=True):
            if source.is_initialized:
                target.update(_full(source, 0), _full(source, 1))
        return dynamic


def _full(layer: RelayLayer, part: int) -> Tensor:
    """One layer's stored keys (part 0) or values (1) in the caller's columns: `[B, H, offset + S, D]`."""
    own = layer.own()[part]
    rows = layer.rows
    batch, heads, length, size = own.shape
    full = own.new_zeros(batch, heads, rows.offset + length, size)
    full[:, :, rows.offset :] = own
    # The prefix ends where a row's own tokens start; what lies before it is padding, and zero.
    starts = [0] * batch if rows.own_start is None else rows.own_start.tolist()
    for row, own_start in enumerate(starts):
        mine = [s for s in layer.shared if s.segment.rows is None or row in s.segment.rows]
        end = rows.offset + own_start
        for shared in reversed(mine):
            full[row, :, end - len(shared) : end] = shared.stored[part]
            end -= len(shared)
    return full


def unsupported_layer(cache: Cache) -> str | None:
    """Why a RelayCache can't stand in for `cache`: the first layer that isn't plain keys and values, or None."""
    for index, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"layer {index} of the cache is a {type(layer).__name__}"
    return None
