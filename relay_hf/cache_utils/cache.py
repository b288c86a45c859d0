"""RelayCache: the Transformers cache that holds shared segments once, and each row's own KV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from ..errors import RelayError
from ..model.architectures import architecture_of
from ..model.upstream.caches import (
    BOTH_LAYERS,
    EMPTY_LAYERS,
    KV_LAYERS,
    STATE_LAYERS,
    lists_layers,
    stock_tensors,
    window_of_layer,
)
from ..model.upstream.models import looped_layers, reusing_layers
from .active import active_forward
from .dynamic_view import DynamicView
from .hybrid_layer import HybridLayer
from .layer import RelayLayer
from .prefix_kv import LayerState, PrefixKV
from .row_layout import RowLayout
from .state_layer import StateLayer, copy_state

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class RelayCache(DynamicView):
    """A cache whose rows share segments of KV.

    A patched model's `generate()` makes it. You can also make an empty one and give it to `generate()` as `cache` (as
    `past_key_values` before Transformers 5.24). Only a patched model can use it: every other model would attend to each
    row's own tokens alone, so this raises. Run a forward of your own on a filled RelayCache under `torch.no_grad()`,
    because there is no backward through segments.

    The model may keep the segments for later calls too: read them, and don't write to them.

    Whatever works on a DynamicCache works on it: iterating, `len`, `layers[i].keys` and `.values`, copies, pickles and
    `torch.save`. Keys and values that are read are joined to whole rows, `[B, Hkv, L, D]` in the caller's layout, with
    zeros in padding. This costs the time to copy them and the memory that a DynamicCache takes for them, until the
    cache is used further. Write to them, or assign others, and they count: then the cache holds whole rows like a
    DynamicCache from its next use on, shares nothing any more, and a call on it is not relayed. Do so between forwards.

    Args:
        config: the model's configuration, which names the layers.
        like: the cache that Transformers has made for `config`, if there is one. It saves time: to ask the
            configuration for its layers again takes 0.5 of 0.6 ms for 33 layers.

    Attributes:
        context: device, dtype, autocast and arithmetic under which generate() filled the cache.
        kv_layers: the layers that hold keys and values, by number.
        state_layers: the recurrent layers, by number.
        reusing: layers that attend to another layer's keys and values.
        attends_stored: in the latest forward attention took keys and values just as they are stored.
        traceable: `attends_stored`, and each attention module named the layer that it attends to. Then the operation
            that replaces a layer's attention in a graph can store keys and values.
        in_static_step: the forward that runs now is a static decode step.
        is_joined: the layers are Transformers' own, and hold whole rows; so after keys or values were changed, and
            after a crop into the shared prefix.

    Raises:
        ValueError: a layer of the model keeps something else than keys and values per token, or has a window of one.

    Example:
        >>> import relay_hf
        >>> from relay_hf.testing import prompts, tiny_model
        >>> model = relay_hf.patch_model(tiny_model("llama"), policy="always")
        >>> cache = RelayCache(model.config)
        >>> tokens = model.generate(**prompts(prefix=40, own=[3, 5, 4]), cache=cache, max_new_tokens=2)
        >>> cache.is_shared, cache.get_seq_length()
        (True, 46)
    """

    def __init__(self, config: PreTrainedConfig, like: Cache | None = None) -> None:
        template = like if isinstance(like, DynamicCache) and lists_layers(like) else DynamicCache(config=config)
        unfit = unsupported_layer(template)
        if unfit is not None:
            raise ValueError(f"config describes a model that a RelayCache can't hold: {unfit}.")
        text = config.get_text_config(decoder=True)
        self.config = config
        self.rows = RowLayout(whole_rows=architecture_of(text).own_attention)
        self.context: Hashable = None
        self.reusing = reusing_layers(text)
        self.attends_stored = False
        self.traceable = False
        self.in_static_step = False
        stocks = [*template.layers, *(template.layers[index] for index in looped_layers(text))]
        Cache.__init__(self, layers=[_counterpart(layer, self.rows) for layer in stocks])
        self.sort_layers()

    @property
    def is_filled(self) -> bool:
        """Whether any layer has seen a token."""
        kv = any(layer.is_initialized for layer in self.kv_layers.values())
        return self.is_joined or kv or any(layer.holds_state for layer in self.state_layers.values())

    def share(
        self,
        runs: Sequence[tuple[tuple[int, ...], PrefixKV]],
        rows: RowLayout,
        batch: int = 1,
        context: Hashable = None,
    ) -> None:
        """Start the (empty) cache with the layout of its `batch` rows, and with the runs that they share.

        `runs`: each run with the rows that use it; it comes after the runs that these rows use before it.
        """
        self._lay_out(rows)
        self.context = context
        for users, run in runs:
            used_by = None if len(users) == batch else users
            for layer, shared in zip(self.layers, run.layers, strict=True):
                if shared.kv is not None and isinstance(layer, RelayLayer):
                    layer.share(shared.kv.used(used_by, run.start))
                if shared.state is not None and isinstance(layer, StateLayer):
                    layer.start_from(shared.state, users, batch)

    def freeze(
        self, attended: dict[int, tuple[Tensor, Tensor]], start: int, length: int, row: int | None = None
    ) -> PrefixKV:
        """The KV and states of a row's own tokens, as a run that other rows can share.

        Args:
            attended: K and V as attention saw them, by layer; for other layers the stored ones are taken.
            start: position of the first token.
            length: number of tokens.
            row: a row of several; copies of its last `length` tokens are made. None: views of the only row.
        """
        frozen = []
        for index, layer in enumerate(self.layers):
            holds_kv = isinstance(layer, RelayLayer) and layer.is_initialized
            tokens = None if row is None else length
            kv = layer.freeze(attended.get(index), row or 0, tokens) if holds_kv else None
            frozen.append(LayerState(kv, layer.state(row or 0) if isinstance(layer, StateLayer) else None))
        return PrefixKV(start, length, tuple(frozen))

    def gather(self, parts: list[tuple[RelayCache, Tensor]], batch: int, columns: int) -> None:
        """Take over the own KV and states of `parts`, `(cache, its rows)`: `batch` rows of `columns` own columns."""
        for index, layer in self.kv_layers.items():
            layer.gather_kv([(cache.kv_layers[index], rows) for cache, rows in parts], batch, columns)
        for index, layer in self.state_layers.items():
            layer.gather_states([(cache.state_layers[index], rows) for cache, rows in parts], batch)
        self.attends_stored = all(cache.attends_stored for cache, _ in parts)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store own KV of a layer and return the layer's own KV; attention finds the segments by itself.

        In a static decode step, and in a graph of torch.compile (where the cache is `traceable`), the arguments are
        returned unchanged, and the layer's attention stores them.

        For attention code of a model's own, split tensors of whole rows are returned.

        Raises:
            RelayError: not inside a forward of a patched model that uses this cache.
        """
        if self.is_joined:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            if self.traceable:
                return key_states, value_states
            from ..model import uncompiled

            return uncompiled.call(self.store, key_states, value_states, layer_idx)
        return self.store(key_states, value_states, layer_idx)

    def store(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """`update` of a model that is not compiled."""
        forward = active_forward.get()
        if forward is None or forward.cache is not self:
            raise RelayError(
                "this RelayCache was updated outside a forward of a model patched by relay_hf, where its shared prefix "
                "would be left out of attention. Patch the model with relay_hf.patch_model(model) and call all of it, "
                "or pass what its to_dynamic() returns."
            )
        if self.rows.shown:
            self._check_unchanged(layer_idx)
        if forward.stores_late:
            forward.saw_update(layer_idx, key_states)
            return key_states, value_states
        layer = self.layers[layer_idx]
        keys, values = layer.store(key_states, value_states)
        forward.saw_update(layer_idx, keys)
        return forward.whole_rows(layer) if self.rows.whole_rows and self.rows.offset else (keys, values)

    def _check_unchanged(self, layer_idx: int) -> None:
        layer = self.layers[layer_idx]
        with self.rows.lock:
            if not isinstance(layer, RelayLayer) or layer.is_changed():
                raise RelayError(
                    f"keys or values of layer {layer_idx} of this RelayCache were changed while a forward runs. Change "
                    "them between forwards, or give the model what the cache's to_dynamic() returns."
                )
            layer.forget()  # they will lack what this forward stores

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many columns attention sees after `query_length` more, and the caller's column of the first one.

        In a static decode step only the step's own columns count, so that the result is the same in each step.
        """
        return (query_length, 0) if self.in_static_step else super().get_mask_sizes(query_length, layer_idx)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The caller's column of the first query; 0 in a static decode step, as in `get_mask_sizes`."""
        return 0 if self.in_static_step else super().get_query_offset(layer_idx)

    @property
    def is_shared(self) -> bool:
        """Whether the rows share anything."""
        return any(self.rows.shared_lengths)

    @property
    def levels(self) -> int:
        """The most groups of rows, one within the other, that share something."""
        shared = next((layer.shared for layer in self.kv_layers.values()), [])
        groups = {part.segment.rows for part in shared}
        used = Counter(row for rows in groups for row in rows or ())
        return (None in groups) + max(used.values(), default=0)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens of every row.

        If some row has fewer own tokens, the rows are joined, and share nothing any more.

        Args:
            tokens_to_remove: 0 or negative, as in Transformers (tokens).

        Raises:
            ValueError: it is positive; or a layer with a sliding window has dropped tokens that it would see again.
            RuntimeError: a layer is recurrent, and does not record its past; or is Transformers' own, and its window
                has dropped tokens.
        """
        with self.rows.lock:
            self.join_if_changed()
            super().crop(tokens_to_remove)
            self.join_if_changed()
            if self.rows.holes is not None:
                self.rows.holes = self.rows.holes[:, : next(iter(self.kv_layers.values())).own_length]

    def reset(self) -> None:
        """Back to an empty cache: no segments, no own KV."""
        with self.rows.all_layers():
            if self.is_joined:
                RelayCache.__init__(self, self.config)
                self.is_joined = False
            super().reset()
            self._lay_out(RowLayout())

    def _lay_out(self, rows: RowLayout) -> None:
        rows.whole_rows = architecture_of(self.config.get_text_config(decoder=True)).own_attention
        rows.lock = self.rows.lock
        self.rows = rows
        for layer in self.kv_layers.values():
            layer.rows = rows

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row `i` go on from row `beam_idx[i]`: own KV is reordered, segments never move.

        Args:
            beam_idx: `[B]` int64.
        """
        with self.rows.all_layers():
            self.take_over()
            self._select_users(beam_idx)
            super().reorder_cache(beam_idx)
            self.rows.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times, its copies behind it: `B` rows become `B * repeats`; segments stay."""
        with self.rows.all_layers():
            self.take_over()
            super().batch_repeat_interleave(repeats)
            self.rows.change_rows(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows.

        Args:
            indices: `[n]` int64, the rows in their new order, or a `[B]` bool mask; a list or an array of either.
        """
        if not isinstance(indices, Tensor):
            indices = torch.as_tensor(indices, device="cpu")
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        with self.rows.all_layers():
            self.take_over()
            self._select_users(indices)
            super().batch_select_indices(indices)
            self.rows.change_rows(lambda state: state[indices.to(state.device)])

    def _select_users(self, indices: Tensor) -> None:
        """Let row i use the segments of row `indices[i]`; the segments do not move."""
        layers = [layer for layer in self.kv_layers.values() if layer.shared]
        every = {part.segment.rows for layer in layers for part in layer.shared}
        parts = [rows for rows in every if rows is not None]
        if not parts:  # all rows use the same segments, so the indices are not read from the device
            return
        count = len(layers[0].own_tensors()[0])
        order = [index % count for index in indices.tolist()]  # negative ones count from the end
        moved = {}
        for rows in parts:
            users = frozenset(rows)
            moved[rows] = tuple(new for new, old in enumerate(order) if old in users)
        if any(before != after for before, after in moved.items()):  # beams stay within the rows of a prompt
            for layer in layers:
                layer.change_users(moved)

    def nbytes(self) -> int:
        """Bytes of what is filled: of the segments, each counted once, of own KV, and of recurrent states."""
        self.join_if_changed()
        kv = self.kv_layers.values()
        tensors = [t for layer in kv for part in layer.shared for t in part.tensors()]
        tensors += [t for layer in kv if layer.is_initialized for t in layer.own()]
        return _nbytes(tensors) + self._other_bytes()

    def nbytes_reserved(self) -> int:
        """Bytes of the room in own buffers for tokens to come."""
        self.join_if_changed()
        kv = [layer for layer in self.kv_layers.values() if layer.is_initialized]
        return sum(_nbytes(layer.own_tensors()) - _nbytes(layer.own()) for layer in kv)

    def nbytes_stock(self) -> int:
        """Bytes that a DynamicCache of the same rows and columns holds."""
        self.join_if_changed()
        total = self._other_bytes()
        for layer in self.kv_layers.values():
            for part in layer.own_tensors():
                length = layer.get_seq_length()
                if layer.sliding_window is not None:
                    length = min(length, layer.sliding_window - 1)
                total += part.shape[0] * part.shape[1] * length * part.shape[3] * part.element_size()
        return total

    def _other_bytes(self) -> int:
        """Bytes of recurrent states, and of keys and values in layers of Transformers' own."""
        stocks = [layer for layer in self.layers if not isinstance(layer, (RelayLayer, StateLayer))]
        states = [t for layer in self.state_layers.values() for t in layer.state_tensors()]
        return _nbytes(states) + _nbytes(t for layer in stocks for t in stock_tensors(layer))

    def adopt(self, dynamic: DynamicCache, context: Hashable = None) -> None:
        """Replace the content by that of a DynamicCache of the same model. Then no rows share anything.

        Keys and values are copied only when they are first written to.
        """
        self.reset()
        self.context = context
        for target, source in zip(self.layers, dynamic.layers, strict=True):
            if isinstance(target, RelayLayer) and isinstance(source.keys, Tensor):
                target.adopt_kv(source.keys, source.values, source.get_seq_length())
            if isinstance(target, StateLayer):
                copy_state(source, target)


def unsupported_layer(cache: Cache) -> str | None:
    """Why a RelayCache can't replace `cache`: the first layer that it has no counterpart for, or None."""
    for index, layer in enumerate(cache.layers):
        if type(layer) not in (*KV_LAYERS, *STATE_LAYERS, *BOTH_LAYERS, *EMPTY_LAYERS):
            return f"layer {index} of the cache is a {type(layer).__name__}"
        if window_of_layer(layer) == 1:
            # Stock's layer keeps `[-window + 1:]`, which is all tokens, and its mask then shows a wrong one.
            return f"layer {index} of the cache has a window of one token"
    return None


def _counterpart(layer: Any, rows: RowLayout) -> Any:
    """The layer of a RelayCache that replaces one of Transformers'."""
    kind = type(layer)
    if kind in STATE_LAYERS:
        return StateLayer(layer.number_of_states)
    if kind in EMPTY_LAYERS:
        return kind()
    window = window_of_layer(layer)
    return HybridLayer(rows, window, layer.number_of_states) if kind in BOTH_LAYERS else RelayLayer(rows, window)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
