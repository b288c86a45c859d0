"""Whether a model still computes what it computed when a prefix was prefilled.

Fused optimizers, writes through `.data` and a LoRA merge change weights without moving `_version` or `data_ptr`. So a
witness holds, for every parameter, its identity, version, address and gradient *and* 32 of its elements, spread
evenly; for every buffer the same; and what else a forward reads: adapters, and the configuration. What it can't see
is a write through `.data` that misses all 32 elements; `model.relay.clear()` is the answer to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..selection import attention_configs, users_implementation

_SAMPLES = 32
# Attributes of peft's tuner layers that decide what a forward adds; read from any module that has them.
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")


class Witness:
    """A model's state at one moment, to be compared with a later one.

    Args:
        model: the model. Nothing of it is kept alive.
        ignore: names of buffers that are left out: those that the model's own forward rewrites.
    """

    def __init__(self, model: nn.Module, ignore: frozenset[str] = frozenset()) -> None:
        self.ignore = ignore
        parameters = list(model.parameters())
        buffers = {name: b for name, b in model.named_buffers() if name not in ignore}
        self._marks = [(*_mark(p), id(p.grad)) for p in parameters] + [_mark(b) for b in buffers.values()]
        self._samples = _sample(parameters)
        self._buffers = {name: _sample([buffer]) for name, buffer in buffers.items()}
        self._state = _module_state(model)

    def holds(self, model: nn.Module) -> bool:
        """Whether `model` is as it was."""
        return self._same(Witness(model, self.ignore))

    def _same(self, other: Witness) -> bool:
        return (
            self._marks == other._marks
            and self._state == other._state
            and _equal(self._samples, other._samples)
            and self._buffers.keys() == other._buffers.keys()
            and all(_equal(self._buffers[name], other._buffers[name]) for name in self._buffers)
        )

    def rewritten(self, later: Witness) -> frozenset[str]:
        """Names of the buffers whose content differs in `later`."""
        names = self._buffers.keys() & later._buffers.keys()
        return frozenset(name for name in names if not _equal(self._buffers[name], later._buffers[name]))


def keeping_refusal(model: nn.Module) -> str | None:
    """Why prefixes of this model live for one call only, or None when they may be kept."""
    if model.training:
        return "the model is in training mode"
    if getattr(model, "hf_quantizer", None) is not None:
        return "the model is quantized"
    device = None
    for module in model.modules():
        if "_hf_hook" in module.__dict__:
            return "the model's modules are wrapped by accelerate"
    for parameter in model.parameters():
        if parameter.is_inference():
            return "the parameters were made in inference mode"
        if type(parameter) is not nn.Parameter:
            return f"a parameter is a {type(parameter).__name__}"
        if device is not None and parameter.device != device:
            return "the model lies on several devices"
        device = parameter.device
    return None


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    return id(tensor), tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape


def _sample(tensors: Iterable[Tensor]) -> dict[tuple[torch.dtype, torch.device], Tensor]:
    """Evenly spread elements of every tensor, concatenated by dtype and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        flat = tensor.detach()
        count = flat.numel()
        if count == 0:
            continue
        if flat.is_contiguous():
            # One call where view(-1)[::step] takes three: 1.2 us a parameter.
            view = flat.as_strided((min(_SAMPLES, count),), (max(1, count // _SAMPLES),))
        else:
            view = flat.reshape(-1)[:: max(1, count // _SAMPLES)][:_SAMPLES]
        groups.setdefault((flat.dtype, flat.device), []).append(view)
    return {kind: torch.cat(views) for kind, views in groups.items()}


def _equal(one: dict, other: dict) -> bool:
    # Compared as bytes: a NaN weight equals itself.
    return one.keys() == other.keys() and all(
        torch.equal(one[kind].view(torch.uint8), other[kind].view(torch.uint8)) for kind in one
    )


def _module_state(model: nn.Module) -> list[Any]:
    state: list[Any] = []
    for module in model.modules():
        values = module.__dict__
        state.extend(repr(values[name]) for name in _ADAPTER_STATE if name in values)
    for config in attention_configs(model):
        fields = {name: value for name, value in vars(config).items() if name != "_attn_implementation_internal"}
        state.append((repr(fields), users_implementation(config)))
    return state
