"""Checks whether prefixes of a model may be kept between calls: not if a fingerprint would not show its changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...reasons import Reason, Refusal
from ..known_code import is_quantized
from ..modules import class_of

# They compute the same in training mode. resize_token_embeddings() leaves the modules that it makes in that mode.
_NEVER_RANDOM = (nn.Embedding, nn.Linear)
# FSDP derives the classes of what it shards. Where it gathers a parameter anew, after an optimizer has changed the
# shards, the tensor and its count of changes are as before, and its memory may be.
_SHARDING = "torch.distributed.fsdp."


def keeping_refusal(model: nn.Module, modules: Sequence[nn.Module]) -> Refusal | None:
    """Why prefixes of this model live for one call only, or None when they may be kept."""
    if is_quantized(model, modules):
        return Reason.QUANTIZED.of()
    if any(kind.__module__.startswith(_SHARDING) for kind in {*map(type, modules)}):
        return Reason.SHARDED.of()
    device = None
    for module in modules:
        if module.training and class_of(module) not in _NEVER_RANDOM:
            return Reason.TRAINING_MODE.of()
        if "forward" in module.__dict__:  # accelerate, torch.compile or a patch replaced it: it may compute anything
            return Reason.FORWARD_REPLACED.of(module=type(module).__name__)
        if not module._parameters:
            continue
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            if parameter.is_inference():
                return Reason.INFERENCE_PARAMETERS.of()
            if type(parameter) is not nn.Parameter:
                return Reason.PARAMETER_KIND.of(kind=type(parameter).__name__)
            if device is None:
                device = parameter.device
            elif parameter.device != device:
                return Reason.SEVERAL_DEVICES.of()
    return None
