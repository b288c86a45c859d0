"""Checks whether a model can be relayed exactly. Each refusal is a reason for the report.

A refusal of this file depends on the present state of the model alone, and not on the arguments of a call.
"""

from __future__ import annotations

import importlib.util

from torch import nn

from ..model.upstream.caches import keeps_state
from ..model.upstream.models import checkpoints_gradients, is_bidirectional, replaced_preparation
from ..model.upstream.names import RANDOM_IN_TRAINING, takes_cache
from ..model.view import ModelView
from ..reasons import Reason, Refusal
from .eligibility import cache_refusal

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


def standing_refusal(view: ModelView) -> Refusal | None:
    """Why no call of this model is served as it is now, whatever the call; or None, also where only a call shows it."""
    refused = model_refusal(view)
    if refused:
        return refused
    cache = view.default_cache()
    if cache is None:  # the model may make one of its own, which only a call shows
        return None if takes_cache(view.forward_inputs) else Reason.NO_CACHE.of()
    return cache_refusal(cache) or (recurrent_refusal(view) if keeps_state(cache) else None)


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
