"""One layer of a RelayCache: a list of shared segments, and own KV per row in buffers that grow."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RelayError
from ..kernels.segment import Segment
from .columns import join_columns
from .prefix_kv import LayerKV
from .row_layout import RowLayout
from .stock_view import ShownRows, StockView

# A full buffer grows by half: slack stays under 50% of what is held, and n tokens cost under 3n copies.
_GROWTH = 1.5

# Own columns that are reserved for tokens to come in any case, however much memory they take, if the call may make as
# many tokens.
_LEAST_RESERVED = 512


class RelayLayer(StockView):
    """Shared segments and own KV of one attention layer.

    Args:
        rows: the layout that all layers of the cache share.
        sliding_window: the window of stock's layer (tokens), or None.
    """

    is_croppable = True

    def __init__(self, rows: RowLayout, sliding_window: int | None = None) -> None:
        self.rows = rows
        self.sliding_window = sliding_window
        self.shared: list[LayerKV] = []
        self.own_length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._read_only = False  # another cache uses the buffers too, or they were made in inference mode
        self._dropped = 0  # leading own columns that another cache has dropped, because they left the window
        self._shown = {}

    @property
    def is_initialized(self) -> bool:
        """Whether anything has been stored."""
        return self._buffers is not None

    @is_initialized.setter
    def is_initialized(self, value: bool) -> None:
        self.become_stock()
        self.is_initialized = value

    def own(self) -> tuple[Tensor, Tensor]:
        """Own keys and values as the model stores them, `[B, Hkv, S, D]` and `[B, Hkv, S, Dv]`, as views."""
        keys, values = self.buffers
        return keys[:, :, : self.own_length], values[:, :, : self.own_length]

    @property
    def capacity(self) -> int:
        """Own columns that fit before the buffers grow."""
        return 0 if self._buffers is None else self._buffers[0].shape[2]

    @property
    def has_room(self) -> bool:
        """Whether another own column can be written in place."""
        return self.own_length < self.capacity and not self._read_only

    def own_tensors(self) -> tuple[Tensor, ...]:
        """The buffers."""
        return self._buffers or ()

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """The buffers of own keys and of own values.

        Raises:
            ValueError: the layer is empty.
        """
        if self._buffers is None:
            raise ValueError("the layer is empty: nothing has been stored in it")
        return self._buffers

    def holds(self, buffers: tuple[Tensor, Tensor]) -> bool:
        """Whether own KV is in these very buffers."""
        return self._buffers is buffers

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers for at least the tokens given. In a layer that is filled, as stock's layer does it."""
        if self._buffers is not None and self.changed_alone("lazy_initialization", key_states, value_states):
            return
        self._grow(self._roomy(key_states.shape[2], key_states, value_states), key_states, value_states)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """What stock's layer does: store new columns, and return all of them in whole rows.

        It becomes stock's layer. A forward stores by `store`.
        """
        with self.rows.lock:
            self.settle()
            if isinstance(self, RelayLayer):
                self.become_stock()
        return self.update(key_states, value_states, *args, **kwargs)

    def store(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write new own KV in place and return all own KV, as views: `[B, Hkv, S, D]` and `[B, Hkv, S, Dv]`."""
        end = self.own_length + key_states.shape[2]
        if self._buffers is not None and len(key_states) != len(self._buffers[0]):
            raise RelayError(f"the cache holds {len(self._buffers[0])} rows, and is given {len(key_states)}")
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
        self.make_room(end)
        for buffer, states in zip(self.own_tensors(), (key_states, value_states), strict=True):
            buffer[:, :, self.own_length : end] = states
        self.own_length = end
        return self.own()

    def make_room(self, columns: int) -> None:
        """Make buffers in which so many own columns fit, and which may be written to."""
        if self._buffers is not None and (columns > self.capacity or self._read_only):
            self._grow(max(self._roomy(columns, *self._buffers), int(self.capacity * _GROWTH)), *self._buffers)

    def append(self, key_states: Tensor, value_states: Tensor, position: Tensor) -> None:
        """Write new own KV in place, at the own columns `position` (`[T]` int64), for which there is room.

        The operations depend on no number of the host, so that a CUDA graph can repeat them.
        """
        for buffer, states in zip(self.own_tensors(), (key_states, value_states), strict=True):
            buffer.index_copy_(2, position.to(buffer.device), states)  # layers may be on several devices
        self.own_length += key_states.shape[2]

    def move_into(self, buffers: tuple[Tensor, Tensor]) -> None:
        """Copy own KV into `buffers`, which have room for it, and use them from now on."""
        if self._buffers is not buffers:
            for target, source in zip(buffers, self.own(), strict=True):
                target[:, :, : self.own_length] = source
            self._buffers, self._read_only = buffers, False

    def move_out(self) -> None:
        """Copy own KV into memory of its own, without room for more."""
        with torch.inference_mode(False):
            new = [part.new_empty(part.shape) for part in self.own()]
        for target, source in zip(new, self.own(), strict=True):
            target.copy_(source)
        self._hold(new[0], new[1])

    def share(self, part: LayerKV) -> None:
        """Add a segment behind those that its rows use already."""
        if self.rows.whole_rows and self.shared:  # attention code of a model's own takes one piece of shared keys
            part = LayerKV.joined([self.shared.pop(), part])
        self.shared.append(part)

    def joined(self, part: int, own_length: int | None = None) -> Tensor:
        """Stored keys (part 0) or values (1) in the caller's columns: `[B, H, offset + S, D]`, zero in padding."""
        own = self.own()[part][:, :, :own_length]
        shared = [[each.stored[part][None] for each in self.shared if _used_by(each, row)] for row in range(len(own))]
        return join_columns(own, 2, self.rows.offset, self.rows.own_start, shared)

    def _roomy(self, columns: int, *like: Tensor) -> int:
        """The number of own columns to make room for; `columns` of them are needed now."""
        bytes_ = sum(len(part) * part.shape[1] * part.shape[3] * part.element_size() for part in like)
        return max(columns, min(self.rows.reserve, columns + max(_LEAST_RESERVED, self.rows.spare // max(bytes_, 1))))

    def _grow(self, capacity: int, *like: Tensor) -> None:
        # Outside of inference mode, because a later call outside of it could not write to a buffer that is made in it.
        with torch.inference_mode(False):
            new = [part.new_empty(part.shape[0], part.shape[1], capacity, part.shape[3]) for part in like]
        if self._buffers is not None:
            for target, source in zip(new, self._buffers, strict=True):
                target[:, :, : self.own_length] = source[:, :, : self.own_length]
        self._buffers, self._read_only = (new[0], new[1]), False

    def adopt_kv(self, keys: Tensor, values: Tensor, columns: int) -> None:
        """Take the KV of another cache's layer, which has seen `columns` and may hold only the last of them."""
        self._dropped = columns - keys.shape[2]
        if self._dropped:
            keys, values = (nn.functional.pad(part, (0, 0, self._dropped, 0)) for part in (keys, values))
        self._buffers, self.own_length, self._read_only = (keys, values), columns, True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns attention sees after `query_length` more, and the caller's column of the first one."""
        if self.rows.whole_rows:
            return self.rows.offset + self.own_length + query_length, 0
        return self.own_length + query_length, self.rows.offset

    def get_seq_length(self) -> int:
        """The caller's columns that are in the cache."""
        return self.rows.offset + self.own_length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens (0 or negative, as in Transformers).

        If these are more than some row's own tokens, the layer becomes Transformers' own.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"tokens_to_remove must be 0 or negative, the tokens to take off the end; got {tokens_to_remove}."
            )
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        first_seen = self.own_length + tokens_to_remove + 1 - (self.sliding_window or 0)
        if max(first_seen, 0) < self._dropped:
            raise ValueError(
                f"tokens_to_remove={tokens_to_remove} moves the window of {self.sliding_window} tokens back over "
                "tokens that are not held: a call which was not relayed dropped them. Run the shorter text again."
            )
        # If a row has fewer own tokens than others, its first own columns hold the last tokens of its prefix.
        own = self.own_length if self.rows.own_start is None else self.own_length - int(self.rows.own_start.max())
        if -tokens_to_remove > own:
            self.become_stock(-tokens_to_remove)
            return
        self.crop_shown(-tokens_to_remove)
        self.own_length += tokens_to_remove

    def reset(self) -> None:
        """Back to an empty layer."""
        if not self.changed_alone("reset"):
            RelayLayer.__init__(self, self.rows, self.sliding_window)

    def change_users(self, moved: dict[tuple[int, ...], tuple[int, ...]]) -> None:
        """Give segments to other rows than before. A segment that no row uses any more is dropped."""
        parts = [_map_rows(part, moved.__getitem__) for part in self.shared]
        self.shared = [part for part in parts if part.segment.rows != ()]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder own KV; the segments stay where they are."""
        if self._buffers is not None and not self.changed_alone("reorder_cache", beam_idx):
            self.make_room(self.own_length)
            for buffer in self._buffers:
                own = buffer[:, :, : self.own_length]
                own.copy_(own.index_select(0, beam_idx.to(own.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        if self.changed_alone("batch_repeat_interleave", repeats):
            return
        self._replace_rows(lambda part: part.repeat_interleave(repeats, dim=0))
        self.shared = [_map_rows(part, lambda rows: _repeat(rows, repeats)) for part in self.shared]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        if self.changed_alone("batch_select_indices", indices):
            return
        self._replace_rows(lambda part: part[indices.to(part.device)])

    def _replace_rows(self, change) -> None:  # type: ignore[no-untyped-def]
        if self._buffers is not None:  # without the room for tokens to come, which may be most of a buffer
            self._hold(*(change(part) for part in self.own()))

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self._buffers, self._read_only = (keys, values), keys.is_inference()

    def freeze(self, attended: tuple[Tensor, Tensor] | None, row: int = 0, tokens: int | None = None) -> LayerKV:
        """The own KV of a row, its last `tokens` (None: all), as a segment that other rows can share.

        `attended`: K and V as attention saw them, `[B, Hkv, S, D]` each; None if attention sees the stored ones.
        """
        own = self.own()
        first = 0 if tokens is None else self.own_length - tokens
        seen = own if attended is None else attended
        stop = seen[0].shape[2]  # for later tokens, K and V as attention sees them are not known
        parts = [part[row, :, first:stop] for part in (*seen, *own)]
        frozen = LayerKV(Segment(parts[0], parts[1]), (parts[2], parts[3]))
        # A view would hold the memory of the padding too, and an expanded tensor is a part of a larger one.
        return frozen if tokens is None and attended is None else frozen.clone()

    def gather_kv(self, parts: list[tuple[RelayLayer, Tensor]], rows: int, columns: int) -> None:
        """Take over the own KV of layers, `(layer, its rows)`, each of which ran some of the rows, right-aligned.

        `rows` and `columns`: sizes of the result. Columns of padding are zero.
        """
        for layer, indices in parts:
            own = layer.own()
            if self._buffers is None:
                like = [part[:1].expand(rows, -1, -1, -1) for part in own]
                self._grow(self._roomy(columns, *like), *like)
                for buffer in self.own_tensors():
                    buffer[:, :, :columns] = 0
            for buffer, part in zip(self.own_tensors(), own, strict=True):
                buffer[indices.to(part.device), :, columns - layer.own_length : columns] = part
        self.own_length = columns

    def __getstate__(self) -> dict[str, Any]:
        """A pickle holds what is filled, without the memory around it."""
        own = None if self._buffers is None else tuple(part.clone() for part in self.own())
        compact = {"shared": [part.compact() for part in self.shared], "_buffers": own, "_read_only": True}
        return {**vars(self), **compact, "_shown": self._shown if self.is_changed() else {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shown = {  # an earlier version of 0.1.0 showed own keys and values only, and a later one kept no columns
            part: each if isinstance(each, ShownRows) else ShownRows(each, state["own_length"])
            for part, each in state.get("_shown", {}).items()
        }
        self.__dict__.update({**state, "_shown": shown})

    def __deepcopy__(self, memo: dict) -> RelayLayer:
        new = RelayLayer(copy.deepcopy(self.rows, memo), self.sliding_window)
        self._copy_into(new)
        return new

    def _copy_into(self, new: RelayLayer) -> None:
        new.shared = list(self.shared)
        new.own_length, new._dropped = self.own_length, self._dropped
        if self.is_changed():
            new._shown = {part: each._replace(tensor=each.tensor.clone()) for part, each in self._shown.items()}
        if self._buffers is not None:
            new._buffers = self._buffers
            new.move_out()


def _used_by(part: LayerKV, row: int) -> bool:
    return part.segment.rows is None or row in part.segment.rows


def _map_rows(part: LayerKV, change) -> LayerKV:  # type: ignore[no-untyped-def]
    rows = part.segment.rows
    return part if rows is None else replace(part, segment=replace(part.segment, rows=change(rows)))


def _repeat(rows: tuple[int, ...], repeats: int) -> tuple[int, ...]:
    return tuple(row * repeats + i for row in rows for i in range(repeats))
