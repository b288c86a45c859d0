"""Recurrent layers of a RelayCache: each row's own state, started from one that the rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

_States = dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class RecurrentState:
    """What a recurrent layer (linear attention, state space, short convolution) holds of the tokens so far, one row.

    Attributes:
        conv: `[1, ...]` inputs of its convolutions that the next token still needs, by their number.
        recurrent: `[1, ...]` states of its recurrences, by their number.
    """

    conv: _States
    recurrent: _States

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold memory."""
        return (*self.conv.values(), *self.recurrent.values())


class StateLayer(LinearAttentionLayer):
    """The state of one recurrent layer, for every row: Transformers' own layer, that can start from a given state.

    Args:
        number_of_states: convolutions and recurrences that the layer has.
    """

    def __init__(self, number_of_states: int = 1) -> None:
        super().__init__(number_of_states=number_of_states)

    @property
    def holds_state(self) -> bool:
        """Whether a forward has left a state here, or one was given."""
        return any(self.has_previous_state.values())

    def state_tensors(self) -> tuple[Tensor, ...]:
        """The states of all rows."""
        return tuple(
            t for states in (self.conv_states, self.recurrent_states) for t in states.values() if t is not None
        )

    def state(self, row: int = 0) -> RecurrentState | None:
        """The state of a row, in tensors of its own; None where there is none."""
        if not self.holds_state:
            return None
        return RecurrentState(_cloned(self.conv_states, row), _cloned(self.recurrent_states, row))

    def start_from(self, state: RecurrentState, rows: tuple[int, ...], batch: int) -> None:
        """Give `rows`, of `batch` rows, the state."""
        conv = _given(self.conv_states, state.conv, rows, batch)
        _install(self, conv, _given(self.recurrent_states, state.recurrent, rows, batch))

    def gather_states(self, parts: list[tuple[StateLayer, Tensor]], rows: int) -> None:
        """Take over the states of layers that ran some of the rows each: `(layer, its rows)`."""
        first = parts[0][0]
        whole = [_emptied(states, rows) for states in (first.conv_states, first.recurrent_states)]
        for layer, indices in parts:
            for target, source in zip(whole, (layer.conv_states, layer.recurrent_states), strict=True):
                for i, tensor in target.items():
                    tensor[indices.to(tensor.device)] = source[i]
        _install(self, *whole)

    def reset(self) -> None:
        """Back to a layer that has seen nothing."""
        StateLayer.__init__(self, self.number_of_states)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._map_rows(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        self._map_rows(lambda state: state[indices.to(state.device)])

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for states in (self.conv_states, self.recurrent_states):
            states.update({i: _writable(change(t)) for i, t in states.items() if t is not None})


def copy_state(source: LinearAttentionLayer, target: LinearAttentionLayer) -> None:
    """Give `target` copies of the states of `source`; each is ours or Transformers' own."""
    _install(target, _cloned(source.conv_states), _cloned(source.recurrent_states))


def _install(layer: LinearAttentionLayer, conv: _States, recurrent: _States) -> None:
    for i, tensor in conv.items():
        layer.conv_states[i], layer.conv_kernel_size[i] = tensor, tensor.shape[-1]
        layer.is_conv_states_initialized[i] = True
        layer.dtype, layer.device = tensor.dtype, tensor.device
    for i, tensor in recurrent.items():
        layer.recurrent_states[i] = tensor
        layer.is_recurrent_states_initialized[i] = True
    layer.has_previous_state.update(dict.fromkeys({*conv, *recurrent}, True))


def _cloned(states: dict[int, Tensor | None], row: int | None = None) -> _States:
    """Copies of the states, of one row or of all."""
    whole = {i: tensor for i, tensor in states.items() if tensor is not None}
    rows = slice(None) if row is None else slice(row, row + 1)
    return {i: _repeated(tensor[rows], len(tensor[rows])) for i, tensor in whole.items()}


def _given(states: dict[int, Tensor | None], shared: _States, rows: tuple[int, ...], batch: int) -> _States:
    """The states of a batch in which some rows have the shared ones; of the others, those that they had."""
    if len(rows) == batch:
        return {i: _repeated(tensor, batch) for i, tensor in shared.items()}
    given = {}
    for i, tensor in shared.items():
        before = states.get(i)
        given[i] = _repeated(torch.zeros_like(tensor), batch) if before is None else before
        given[i][list(rows)] = tensor
    return given


def _writable(state: Tensor) -> Tensor:
    return _repeated(state, len(state)) if state.is_inference() else state


def _repeated(state: Tensor, rows: int) -> Tensor:
    # Outside inference mode: a state born in it could not be written by a later call outside of it.
    with torch.inference_mode(False):
        new = state.new_empty((rows, *state.shape[1:]))
    return new.copy_(state.expand(rows, *state.shape[1:]))


def _emptied(states: dict[int, Tensor | None], rows: int) -> _States:
    with torch.inference_mode(False):
        return {i: t.new_empty((rows, *t.shape[1:])) for i, t in states.items() if t is not None}
