"""Whether a model still computes what it computed when a prefix was prefilled.

Fused optimizers, writes through `.data` and a LoRA merge change weights without moving `_version` or `data_ptr`. So a
witness holds, for every parameter, its identity, version, address and gradient *and* 32 of its elements, spread
evenly; for every buffer the same; and what else a forward reads: adapters, and the configuration. What it can't see
is a write through `.data` that misses all 32 elements; `model.relay.clear()` is the answer to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..selection import attention_configs, users_implementation

_SAMPLES = 32
# Attributes of peft's tuner layers that decide what a forward adds; read from any module that has them.
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")

BufferKey = tuple[int, str]


class Witness:
    """A model's state at one moment, to be compared with a later one.

    Args:
        modules: all modules of the model. Nothing of them is kept alive.
        ignore: buffers that are left out: those that the model's own forward rewrites.
    """

    def __init__(self, modules: Sequence[nn.Module], ignore: frozenset[BufferKey] = frozenset()) -> None:
        self.ignore = ignore
        parameters: list[Tensor] = []
        buffers: dict[BufferKey, Tensor] = {}
        # One pass over the modules: for 1,000 parameters in 1,500 modules, model.parameters() and its like take longer
        # than all that is done with them here.
        for index, module in enumerate(modules):
            if module._parameters:
                parameters += [p for p in module._parameters.values() if p is not None]
            for name, buffer in module._buffers.items():
                if buffer is not None and (index, name) not in ignore:
                    buffers[index, name] = buffer
        self._marks = _marks(parameters) + _marks(buffers.values())
        self._samples = _sample(parameters)
        self._buffers = {key: _sample([buffer]) for key, buffer in buffers.items()}
        self._state = _module_state(modules)

    def holds(self, modules: Sequence[nn.Module]) -> bool:
        """Whether the model of `modules` is as it was."""
        other = Witness(modules, self.ignore)
        return (
            self._marks == other._marks
            and self._state == other._state
            and self._samples == other._samples
            and self._buffers == other._buffers
        )

    def rewritten(self, later: Witness) -> frozenset[BufferKey]:
        """The buffers whose content differs in `later`."""
        keys = self._buffers.keys() & later._buffers.keys()
        return frozenset(key for key in keys if self._buffers[key] != later._buffers[key])


def keeping_refusal(model: nn.Module, modules: Sequence[nn.Module]) -> str | None:
    """Why prefixes of this model live for one call only, or None when they may be kept."""
    if getattr(model, "hf_quantizer", None) is not None:
        return "the model is quantized"
    device = None
    for module in modules:
        if module.training:
            return "the model is in training mode"
        if "_hf_hook" in module.__dict__:
            return "the model's modules are wrapped by accelerate"
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            if parameter.is_inference():
                return "the parameters were made in inference mode"
            if type(parameter) is not nn.Parameter:
                return f"a parameter is a {type(parameter).__name__}"
            if device is not None and parameter.device != device:
                return "the model lies on several devices"
            device = parameter.device
    return None


def _marks(tensors: Iterable[Tensor]) -> list[int]:
    """Identity, version, address and gradient of each, flat: a tuple for each sets off the garbage collector."""
    return [mark for t in tensors for mark in (id(t), t._version, t.data_ptr(), id(t.grad))]


@torch.no_grad()
def _sample(tensors: Iterable[Tensor]) -> dict[torch.dtype, bytes]:
    """Evenly spread elements of every tensor, the first and the last among them, as bytes: a NaN equals itself."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        count = tensor.numel()
        if count == 0:
            continue
        # Not a divisor of a row's length as a rule, so that the samples do not all lie in one column.
        step = max(1, (count - 1) // (_SAMPLES - 1))
        if tensor.is_contiguous():
            # One call where view(-1)[::step] takes three: 0.9 us a parameter.
            view = tensor.as_strided((min(_SAMPLES, count),), (step,))
        else:
            view = tensor.reshape(-1)[::step][:_SAMPLES]
        groups.setdefault(tensor.dtype, []).append(view)
    # Compared by Python: a comparison by torch would start its threads, which takes milliseconds on a busy machine.
    return {kind: torch.cat(views).cpu().view(torch.uint8).numpy().tobytes() for kind, views in groups.items()}


def _module_state(modules: Sequence[nn.Module]) -> list[Any]:
    state: list[Any] = []
    for module in modules:
        members = module.__dict__
        state += (id(module), id(members.get("forward")))
        if "_active_adapter" in members:
            state += [repr(members.get(name)) for name in _ADAPTER_STATE]
    for config in attention_configs(modules):
        fields = {name: value for name, value in vars(config).items() if name != "_attn_implementation_internal"}
        state += (repr(fields), users_implementation(config))
    return state
