"""The names of a run's tensors in a file, and a run made from tensors with these names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..cache_utils import LayerKV, LayerState, PrefixKV, RecurrentState
from ..kernels.segment import Segment

Visit = Callable[[str, Tensor, bool], Tensor]


def rebuilt(run: PrefixKV, visit: Visit) -> PrefixKV:
    """The run with each tensor replaced by the result of `visit`.

    `visit` gets the tensor's name, the tensor, and whether it has an entry for every token, `[heads, tokens, size]`.
    States of recurrent layers belong to the last token alone.
    """
    layers = tuple(_rebuilt(layer, f"layers.{index}", visit) for index, layer in enumerate(run.layers))
    return replace(run, layers=layers)


def named_tensors(run: PrefixKV) -> dict[str, Tensor]:
    """The tensors of a run by name, each once."""
    found: dict[str, Tensor] = {}

    def note(name: str, tensor: Tensor, by_token: bool) -> Tensor:
        found[name] = tensor
        return tensor

    rebuilt(run, note)
    return found


def shapes(template: PrefixKV, length: int, states: bool) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Dtype and shape of each tensor of a run of `length` tokens, by name, derived from the model's run `template`.

    `states`: whether the run has the states of recurrent layers, if the model has any.
    """
    found: dict[str, tuple[torch.dtype, list[int]]] = {}

    def note(name: str, tensor: Tensor, by_token: bool) -> Tensor:
        if by_token or states:
            shape = list(tensor.shape)
            found[name] = (tensor.dtype, [shape[0], length, *shape[2:]] if by_token else shape)
        return tensor

    rebuilt(template, note)
    return found


def without_states(run: PrefixKV) -> PrefixKV:
    """The same without the states of recurrent layers."""
    return replace(run, layers=tuple(LayerState(layer.kv) for layer in run.layers))


def _rebuilt(layer: LayerState, name: str, visit: Visit) -> LayerState:
    kv = state = None
    if layer.kv is not None:
        segment, stored = layer.kv.segment, layer.kv.stored
        key, value = visit(f"{name}.key", segment.key, True), visit(f"{name}.value", segment.value, True)
        if layer.kv.stored_as_attended:
            stored = (key, value)
        else:
            stored = (visit(f"{name}.stored.0", stored[0], True), visit(f"{name}.stored.1", stored[1], True))
        kv = LayerKV(Segment(key, value), stored)
    if layer.state is not None:
        kinds = (("conv", layer.state.conv), ("recurrent", layer.state.recurrent))
        state = RecurrentState(
            *({i: visit(f"{name}.{kind}.{i}", tensor, False) for i, tensor in states.items()} for kind, states in kinds)
        )
    return LayerState(kv, state)
