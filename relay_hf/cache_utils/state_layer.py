"""Recurrent layers of a RelayCache: each row has a state of its own, which starts from a copy of a shared one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.upstream.caches import (
    LinearAttentionLayer,
    States,
    holds_state,
    install_states,
    replace_states,
    states_of,
)


@dataclass(frozen=True, eq=False)
class RecurrentState:
    """The state of a recurrent layer (linear attention, state space, short convolution) after some tokens of one row.

    Attributes:
        conv: `[1, ...]`, the inputs of each convolution that its next token needs, by number of the convolution.
        recurrent: `[1, ...]`, the state of each recurrence, by number of the recurrence.
    """

    conv: States
    recurrent: States

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold memory."""
        return (*self.conv.values(), *self.recurrent.values())


class StateLayer(LinearAttentionLayer):
    """The states of all rows in one recurrent layer: Transformers' own layer, which can also start from a given state.

    Args:
        number_of_states: convolutions and recurrences that the layer has.
    """

    def __init__(self, number_of_states: int = 1) -> None:
        super().__init__(number_of_states=number_of_states)

    @property
    def holds_state(self) -> bool:
        """Whether a forward has left a state here, or one was given."""
        return holds_state(self)

    def state_tensors(self) -> tuple[Tensor, ...]:
        """The states of all rows."""
        return tuple(tensor for states in states_of(self) for tensor in states.values())

    def state(self, row: int = 0) -> RecurrentState | None:
        """The state of a row, in tensors of its own; None where there is none."""
        if not self.holds_state:
            return None
        return RecurrentState(*(_cloned(states, row) for states in states_of(self)))

    def start_from(self, state: RecurrentState, rows: tuple[int, ...], batch: int) -> None:
        """Give the state to `rows`, some of the `batch` rows."""
        given = zip(states_of(self), (state.conv, state.recurrent), strict=True)
        install_states(self, *(_given(before, shared, rows, batch) for before, shared in given))

    def gather_states(self, parts: list[tuple[StateLayer, Tensor]], rows: int) -> None:
        """Take over the states of layers, `(layer, its rows)`, each of which ran some of the rows."""
        conv, recurrent = (_emptied(states, rows) for states in states_of(parts[0][0]))
        for layer, indices in parts:
            for target, source in zip((conv, recurrent), states_of(layer), strict=True):
                for i, tensor in target.items():
                    tensor[indices.to(tensor.device)] = source[i]
        install_states(self, conv, recurrent)

    def to_stock(self) -> LinearAttentionLayer:
        """The same states in a new layer of Transformers' own."""
        stock = LinearAttentionLayer(number_of_states=self.number_of_states)
        copy_state(self, stock)
        return stock

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
        replace_states(self, *({i: _writable(change(t)) for i, t in states.items()} for states in states_of(self)))


def copy_state(source: LinearAttentionLayer, target: LinearAttentionLayer) -> None:
    """Give `target` copies of the states of `source`. Both may be layers of a RelayCache or of Transformers' cache."""
    install_states(target, *map(_cloned, states_of(source)))


def _cloned(states: States, row: int | None = None) -> States:
    """Copies of the states, of one row or of all."""
    rows = slice(None) if row is None else slice(row, row + 1)
    return {i: _repeated(tensor[rows], len(tensor[rows])) for i, tensor in states.items()}


def _given(states: States, shared: States, rows: tuple[int, ...], batch: int) -> States:
    """The states of a batch in which `rows` have the shared states, and the other rows those that they had."""
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
    # Outside of inference mode, because a later call outside of it could not write to a state that is made in it.
    with torch.inference_mode(False):
        new = state.new_empty((rows, *state.shape[1:]))
    return new.copy_(state.expand(rows, *state.shape[1:]))


def _emptied(states: States, rows: int) -> States:
    with torch.inference_mode(False):
        return {i: t.new_empty((rows, *t.shape[1:])) for i, t in states.items()}
