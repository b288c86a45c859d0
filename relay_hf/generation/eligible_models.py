"""Checks whether a model can be relayed exactly. Each refusal is a reason for the report.

A refusal of this file depends on the present state of the model alone, and not on the arguments of a call.
"""

from __future__ import annotations

import importlib.util
from types import BuiltinFunctionType

from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from ..model.attention_choice import users_implementation
from ..model.upstream.attention import eager_attention, registered_attention, registered_mask
from ..model.upstream.models import (
    checkpoints_gradients,
    is_bidirectional,
    is_harmless_hook,
    is_librarys,
    replaced_preparation,
)
from ..model.upstream.names import KNOWN_ATTENTION, RANDOM_IN_TRAINING
from ..model.view import ModelView
from ..reasons import Reason, Refusal

# Packages whose kernels replace the recurrent layers' PyTorch code on a GPU.
_RECURRENT_KERNELS = ("causal_conv1d", "fla", "kernels", "mamba_ssm")


def model_refusal(view: ModelView) -> Refusal | None:
    """Why no call of this model is served, or None."""
    if view.model.config.is_encoder_decoder:
        return Reason.ENCODER_DECODER.of()
    config, known = view.text_config, view.architecture
    if known.untouched is not None:
        return Reason.UNFIT_MODEL.of(why=known.untouched)
    if known.own_attention:
        # Attention code of the model's own can't be observed to be causal, so the configuration is read.
        if known.decoder and not config.is_decoder:
            return Reason.NO_DECODER.of()
        if is_bidirectional(config):
            return Reason.BIDIRECTIONAL.of()
    if replaced_preparation(view.model):
        return Reason.PREPARATION.of()
    return None


def attention_refusal(view: ModelView) -> Refusal | None:
    """Why the model's attention function may compute something else than attention, or None.

    A relayed forward computes attention by the operator, and does not call that function.
    """
    for config in view.configs:
        name = users_implementation(config)
        if name is not None and name not in KNOWN_ATTENTION:
            return Reason.ATTENTION.of(name=name)
        for what, function in (("", registered_attention(name)), ("mask of the ", registered_mask(name))):
            origin = getattr(function, "__module__", "")
            if function is not None and not is_librarys(origin):
                origin = origin or type(function).__name__
                return Reason.ATTENTION_REPLACED.of(what=what, name=name, origin=origin)
    if not isinstance(nn.functional.scaled_dot_product_attention, BuiltinFunctionType):
        return Reason.SDPA_REPLACED.of()
    for kind in set(map(type, view.modules)):
        if kind.__module__.startswith("torch.ao.nn.quantized.dynamic"):
            return Reason.QUANTIZED_BY_BATCH.of()
        eager = eager_attention(kind)
        origin = getattr(eager, "__module__", "")
        if eager is not None and origin != kind.__module__ and not is_librarys(origin):
            origin = origin or type(eager).__name__
            return Reason.EAGER_REPLACED.of(module=kind.__module__, origin=origin)
    return None


def hook_refusal(view: ModelView) -> Refusal | None:
    """Why forward hooks forbid relaying, or None: a hook that reads or edits activations would see other shapes."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        return Reason.HOOK_ON_ALL.of()
    for module in view.modules:
        if module._forward_hooks or module._forward_pre_hooks:
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                if not view.is_own_hook(hook) and not is_harmless_hook(hook):
                    return Reason.HOOK.of(module=type(module).__name__)
    return None


def training_refusal(view: ModelView) -> Refusal | None:
    """Why a model in training mode is not served, or None: dropout and gradient checkpointing must be off."""
    if not any(module.training for module in view.modules):
        return None
    for module in view.modules:
        if checkpoints_gradients(module):
            return Reason.CHECKPOINTING.of()
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            return Reason.DROPOUT.of(probability=module.p)
    for config in view.configs:
        for name, value in vars(config).items():
            if isinstance(value, float) and value > 0 and any(word in name for word in RANDOM_IN_TRAINING):
                return Reason.RANDOM_IN_TRAINING.of(name=name, value=value)
    return None


def recurrent_refusal(view: ModelView) -> Refusal | None:
    """Why a model with recurrent layers is not served, or None."""
    if view.architecture.recurrent is None:
        return Reason.RECURRENT.of(kind=view.text_config.model_type)
    if view.device.type != "cpu":
        for name in _RECURRENT_KERNELS:
            if importlib.util.find_spec(name) is not None:
                return Reason.RECURRENT_KERNELS.of(package=name)
    return None
