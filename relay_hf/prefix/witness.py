"""Whether a model still computes what it computed when a prefix was prefilled.

Fused optimizers, writes through `.data` and a LoRA merge change weights without moving `_version` or `data_ptr`. So a
witness holds, for every parameter, its identity, version, address and gradient *and* 32 of its elements, spread
evenly; for every buffer the same; and what else a forward reads: adapters, and the configuration. What it can't see
is a write through `.data` that misses all 32 elements, a single row of a matrix, say; `model.relay.clear()` is the
answer to that. (The rows of the embedding that a kept prefix uses are looked at one by one: `keeping.py`.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..selection import ATTENTION_FIELD, attention_configs, users_implementation

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
        self._marks = _marks(parameters)
        self._samples = _sample(parameters)
        self._buffers = {key: (_marks([buffer]), _sample([buffer])) for key, buffer in buffers.items()}
        self._state = _module_state(modules)

    def holds(self, modules: Sequence[nn.Module]) -> bool:
        """Whether the model of `modules` is as it was."""
        return self.same(Witness(modules, self.ignore))

    def same(self, other: Witness) -> bool:
        """Whether two witnesses, that ignore the same buffers, saw the same model."""
        return (
            self._marks == other._marks
            and self._state == other._state
            and self._samples == other._samples
            and self._buffers == other._buffers
        )

    def rewritten(self, later: Witness) -> frozenset[BufferKey]:
        """The buffers that differ in `later`."""
        keys = self._buffers.keys() & later._buffers.keys()
        return frozenset(key for key in keys if self._buffers[key] != later._buffers[key])

    def without(self, buffers: frozenset[BufferKey]) -> Witness:
        """The same witness, blind for `buffers` too."""
        new = copy.copy(self)
        new.ignore = self.ignore | buffers
        new._buffers = {key: seen for key, seen in self._buffers.items() if key not in buffers}
        return new


def keeping_refusal(model: nn.Module, modules: Sequence[nn.Module]) -> str | None:
    """Why prefixes of this model live for one call only, or None when they may be kept."""
    if getattr(model, "hf_quantizer", None) is not None:
        return "the model is quantized"
    device = None
    for module in modules:
        if module.training:
            return "the model is in training mode"
        if "forward" in module.__dict__:  # by accelerate, torch.compile or a test's patch: the new one may be anything
            return "a module's forward was replaced"
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


def structure(modules: Sequence[nn.Module]) -> list[Any]:
    """What a CUDA graph of a forward has in it for good: where weights and buffers lie, not what they hold.

    And what else a forward reads: adapters, and the configuration.
    """
    places: list[Any] = []
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            places += [mark for t in tensors.values() if t is not None for mark in (id(t), t.data_ptr(), t.dtype)]
    return places + _module_state(modules)


def _marks(tensors: Iterable[Tensor]) -> list[int]:
    """Identity, version, address and gradient of each, flat: a tuple for each sets off the garbage collector."""
    return [mark for t in tensors for mark in (id(t), _version(t), t.data_ptr(), id(t.grad))]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@torch.no_grad()
def _sample(tensors: Iterable[Tensor]) -> dict[torch.dtype, bytes]:
    """Evenly spread elements of every tensor, as bytes: a NaN equals itself."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        count = tensor.numel()
        if count == 0:
            continue
        step = _step(count, tensor.shape[-1] if tensor.dim() > 1 else 1)
        if tensor.is_contiguous():
            # One call where view(-1)[::step] takes three: 0.9 us a parameter.
            view = tensor.as_strided((min(_SAMPLES, count),), (step,))
        else:
            view = tensor.reshape(-1)[::step][:_SAMPLES]
        groups.setdefault(tensor.dtype, []).append(view)
    # Compared by Python: a comparison by torch would start its threads, which takes milliseconds on a busy machine.
    return {kind: torch.cat(views).cpu().view(torch.uint8).numpy().tobytes() for kind, views in groups.items()}


def _step(count: int, columns: int) -> int:
    """Elements from one sample to the next, of `count` in rows of `columns`.

    If that can be had by a sixteenth less, not all samples lie in a few columns: the first column of Mamba's A_log is
    zero in every row, however it is scaled.
    """
    step = max(1, (count - 1) // (_SAMPLES - 1))
    return next((s for s in range(step, step - step // 16 - 1, -1) if math.gcd(s, columns) == 1), step)


def _module_state(modules: Sequence[nn.Module]) -> list[Any]:
    state: list[Any] = []
    for module in modules:
        members = module.__dict__
        state += (id(module), type(module))
        if "_active_adapter" in members:
            state += [repr(members.get(name)) for name in _ADAPTER_STATE]
    for config in attention_configs(modules):
        fields = {name: value for name, value in vars(config).items() if name != ATTENTION_FIELD}
        state += (repr(fields), users_implementation(config))
    return state
