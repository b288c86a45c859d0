"""Which generate() calls are served: those known to be exact. Each refusal is a reason for the report."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from types import BuiltinFunctionType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..cache_utils import RelayCache
from ..cache_utils.cache import unsupported_layer
from ..model.architectures import Architecture, architecture_of
from ..model.attention_choice import users_implementation
from ..model.device import device_of
from ..model.upstream.attention import eager_attention, registered_attention, registered_mask
from ..model.upstream.caches import is_plain, is_users
from ..model.upstream.models import (
    checkpoints_gradients,
    counts_positions_itself,
    is_bidirectional,
    is_harmless_hook,
    is_librarys,
    is_stocks,
    replaced_preparation,
    rope_limit,
    text_config,
)
from ..model.upstream.names import CACHE, KNOWN_ATTENTION, KNOWN_INPUTS, RANDOM_IN_TRAINING
from ..reasons import Reason, Refusal

if TYPE_CHECKING:
    from ..prefix import Prompts
    from .call import GenerateCall

# Packages whose kernels take the place of the recurrent layers' PyTorch code on a GPU.
_RECURRENT_KERNELS = ("causal_conv1d", "fla", "kernels", "mamba_ssm")
# Projections of a recurrent layer that come after its convolution, by their names.
_BEHIND_CONVOLUTIONS = frozenset({"dt_proj", "o_proj", "out_proj", "x_proj"})


def model_refusal(model: PreTrainedModel) -> Refusal | None:
    """Why no call of this model is served, or None."""
    if model.config.is_encoder_decoder:
        return Reason.ENCODER_DECODER.of()
    config = text_config(model)
    known = architecture_of(config)
    if known.untouched is not None:
        return Reason.UNFIT_MODEL.of(why=known.untouched)
    if known.parted:
        # Attention code of the model's own is not seen to be causal, so what says otherwise is read.
        if known.decoder and not config.is_decoder:
            return Reason.NO_DECODER.of()
        if is_bidirectional(config):
            return Reason.BIDIRECTIONAL.of()
    if replaced_preparation(model):
        return Reason.PREPARATION.of()
    return None


def attention_refusal(modules: Iterable[nn.Module], configs: Iterable[PreTrainedConfig]) -> Refusal | None:
    """Why what the model calls attention may be something else, or None: relayed forwards would not run it."""
    for config in configs:
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
    for kind in set(map(type, modules)):
        if kind.__module__.startswith("torch.ao.nn.quantized.dynamic"):
            return Reason.QUANTIZED_BY_BATCH.of()
        eager = eager_attention(kind)
        origin = getattr(eager, "__module__", "")
        if eager is not None and origin != kind.__module__ and not is_librarys(origin):
            origin = origin or type(eager).__name__
            return Reason.EAGER_REPLACED.of(module=kind.__module__, origin=origin)
    return None


def hook_refusal(modules: Iterable[nn.Module], ours: object) -> Refusal | None:
    """Why the model's forward hooks forbid it: a hook that reads or edits activations would see other shapes.

    `ours` is the handle whose bound methods are the relay's own hooks.
    """
    if _global_forward_hooks or _global_forward_pre_hooks:
        return Reason.HOOK_ON_ALL.of()
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                if getattr(hook, "__self__", None) is not ours and not is_harmless_hook(hook):
                    return Reason.HOOK.of(module=type(module).__name__)
    return None


def training_refusal(modules: Sequence[nn.Module], configs: Iterable[PreTrainedConfig]) -> Refusal | None:
    """Why a model in training mode is not served: only where dropout and checkpointing are off is it the same model."""
    if not any(module.training for module in modules):
        return None
    for module in modules:
        if checkpoints_gradients(module):
            return Reason.CHECKPOINTING.of()
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            return Reason.DROPOUT.of(probability=module.p)
    for config in configs:
        for name, value in vars(config).items():
            if isinstance(value, float) and value > 0 and any(word in name for word in RANDOM_IN_TRAINING):
                return Reason.RANDOM_IN_TRAINING.of(name=name, value=value)
    return None


def call_refusal(
    model: PreTrainedModel,
    call: GenerateCall,
    input_ids: Tensor,
    generation_config: GenerationConfig,
    inputs: dict,
    first: bool,
    stock_cache: Cache | None,
) -> Refusal | None:
    """Why this call is not served, or None.

    Args:
        model: the model that generates.
        call: what the caller has given.
        input_ids: `[B, L]`.
        generation_config: as generate() resolved it.
        inputs: the keyword inputs of the forward, as generate() has them.
        first: generate()'s `is_first_iteration`.
        stock_cache: the cache among the inputs, or what stands for it.
    """
    if not first:
        return Reason.ASSISTANT.of()
    if torch.is_grad_enabled():
        return Reason.GRADIENTS.of()
    if generation_config.use_cache is False or inputs.get("use_cache") is False:
        return (Reason.WITHOUT_CACHE if call.asked("use_cache") else Reason.WITHOUT_CACHE_BY_DEFAULT).of()
    for name in ("output_attentions", "output_hidden_states"):
        if inputs.get(name) or getattr(generation_config, name, False):
            return (Reason.ALL_OUTPUTS if call.asked(name) else Reason.ALL_OUTPUTS_BY_DEFAULT).of(name=name)
    for name, value in inputs.items():
        empty = value is None or (isinstance(value, dict) and not value)  # what multimodal models get for text alone
        if not empty and name not in KNOWN_INPUTS:
            return _input_refusal(model, call, name)
    if inputs.get("logits_to_keep") not in (None, 1):
        return (Reason.PROMPT_LOGITS if call.asked("logits_to_keep") else Reason.OTHER_LOGITS).of()
    if input_ids.dim() != 2 or input_ids.shape[1] < 2:
        return Reason.NO_PROMPT.of()
    if is_users(stock_cache) and not isinstance(stock_cache, RelayCache):
        return Reason.CACHE_GIVEN.of(name=CACHE)
    return cache_refusal(stock_cache, call.names_cache)


def _input_refusal(model: PreTrainedModel, call: GenerateCall, name: str) -> Refusal:
    """Whose an input is that is not relayed. Of images, say, which the caller gave, generate() makes another input."""
    if call.inputs is None or call.inputs - KNOWN_INPUTS:
        return Reason.INPUT_GIVEN.of(name=name)
    return (Reason.INPUT_ADDED if is_stocks(model, "generate") else Reason.INPUT_OF_MODEL).of(name=name)


def padding_refusal(attended: Tensor | None) -> Refusal | None:
    """Why a mask forbids it, or None. `attended`: `[B, n]` bool, on the host, or None where all tokens are."""
    if attended is None or bool(attended[:, -1].all()):
        return None
    # What it is generated from may see nothing at all, and then each implementation makes up something else.
    return Reason.PADDED_END.of()


def cache_refusal(stock_cache: Cache | None, asked: bool = False) -> Refusal | None:
    """Why a RelayCache can't take the place of the cache that stock would use, or None.

    `asked`: the caller has asked for that kind of cache.
    """
    if isinstance(stock_cache, RelayCache):
        return None
    if stock_cache is None:
        return Reason.NO_CACHE.of()
    if not is_plain(stock_cache):
        reason = Reason.OTHER_CACHE_ASKED if asked else Reason.OTHER_CACHE
        what = "an offloaded" if type(stock_cache) is DynamicCache else "a"
        return reason.of(kind=f"{what} {type(stock_cache).__name__}")
    unfit = unsupported_layer(stock_cache)
    return None if unfit is None else Reason.LAYER.of(layer=unfit)


def recurrent_refusal(
    architecture: Architecture,
    model: PreTrainedModel,
    chunked: bool = False,
    padded: bool = False,
    holes: bool = False,
) -> Refusal | None:
    """Why a model with recurrent layers is not served, or None.

    Args:
        chunked: the call asks for a chunked prefill.
        padded: some row has padding before its first token.
        holes: some row's mask has any behind its first token.
    """
    if architecture.recurrent is None:
        return Reason.RECURRENT.of(kind=text_config(model).model_type)
    if chunked:
        return Reason.CHUNKED_STATES.of()
    if holes:
        return Reason.HOLES_IN_STATES.of()
    if padded and any(_shows_padding(module) for module in model.modules()):
        return Reason.PADDED_STATES.of()
    if device_of(model).type != "cpu":
        for name in _RECURRENT_KERNELS:
            if importlib.util.find_spec(name) is not None:
                return Reason.RECURRENT_KERNELS.of(package=name)
    return None


def _shows_padding(module: nn.Module) -> bool:
    """Whether a module has a convolution and, before it, a projection with a bias.

    Stock zeroes padding before the projection alone: what then enters the convolution is the bias, and the first
    tokens of a row see it.
    """
    # What peft puts around a layer has it as its base_layer.
    children = {name: getattr(child, "base_layer", child) for name, child in module.named_children()}
    before = [child for name, child in children.items() if name not in _BEHIND_CONVOLUTIONS]
    convolutions = [child for child in before if isinstance(child, nn.Conv1d)]
    biased = [child for child in before if getattr(child, "bias", None) is not None]
    return bool(convolutions) and any(child not in convolutions for child in biased)


def position_refusal(
    model: PreTrainedModel,
    call: GenerateCall,
    position_ids: Tensor | None,
    mask: Tensor | None,
    prompts: Prompts,
    positions: str,
) -> Refusal | None:
    """Why the positions forbid it: they must be those that generate() counts from the mask.

    `position_ids` and `mask`: those that the forward is to get; `positions`: as in the table of types.
    """
    given = position_ids is not None and positions != "columns"
    if bool(prompts.start.any()) and not given and positions != "relative":
        return Reason.PADDED_COLUMNS.of()
    if position_ids is None:
        return None
    if prompts.holes and not given:  # GIT takes those of a prompt's first forward alone
        return Reason.HOLES_IN_COLUMNS.of()
    if position_ids.dim() != 2:
        return Reason.POSITIONS_OF_MODEL.of(dimensions=position_ids.dim())
    rows, columns = prompts.ids.shape
    expected = np.arange(columns)
    if prompts.attended is not None:
        attended = prompts.attended.numpy()
        expected = np.where(attended, attended.cumsum(axis=1) - 1, 0)
    fits = position_ids.shape[1] == columns and (prompts.attended is None or len(position_ids) == rows)
    same = fits and not position_ids.is_floating_point() and bool((position_ids.cpu().numpy() == expected).all())
    if same:
        return None
    counts = mask is not None and mask.dtype is not torch.bool and bool((mask > 1).any())  # it is summed up
    if call.asked("position_ids") or counts:
        return Reason.POSITIONS_GIVEN.of()
    return (Reason.POSITIONS_OF_ITS_OWN if counts_positions_itself(model) else Reason.POSITIONS_COUNTED).of()


def rope_refusal(configs: Iterable[PreTrainedConfig], length: int) -> Refusal | None:
    """Why RoPE forbids a prompt of `length` tokens: its frequencies are others than those of a shorter prefix."""
    for config in configs:
        limit = rope_limit(config)
        if limit is not None and length >= limit:
            return Reason.LONG_ROPE.of(limit=limit, length=length)
    return None
