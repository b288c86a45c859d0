"""Checks whether a call can be relayed exactly. Each refusal is a reason for the report.

Reasons that hold for all calls of a model are in `eligible_models.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig

from ..cache_utils import RelayCache
from ..cache_utils.cache import unsupported_layer
from ..model.upstream.caches import is_plain, is_users
from ..model.upstream.models import counts_positions_itself, is_stocks, rope_limit, takes_media
from ..model.upstream.names import CACHE, KNOWN_INPUTS, TOKEN_TYPES, is_media
from ..prefix import Prompts
from ..reasons import Reason, Refusal
from .facts import CallFacts, PrefillInputs

# Names of a recurrent layer's projections that come after its convolution.
_BEHIND_CONVOLUTIONS = frozenset({"dt_proj", "o_proj", "out_proj", "x_proj"})


def call_refusal(facts: CallFacts, asked: PrefillInputs, stock_cache: Cache | None) -> Refusal | None:
    """Why this call is not served, or None. `stock_cache`: the cache that stock would use."""
    arguments, inputs = facts.arguments, asked.inputs
    if not asked.first:
        return Reason.ASSISTANT.of()
    if torch.is_grad_enabled():
        return Reason.GRADIENTS.of()
    if asked.generation_config.use_cache is False or inputs.get("use_cache") is False:
        return (Reason.WITHOUT_CACHE if arguments.asked("use_cache") else Reason.WITHOUT_CACHE_BY_DEFAULT).of()
    for name in ("output_attentions", "output_hidden_states"):
        if inputs.get(name) or getattr(asked.generation_config, name, False):
            return (Reason.ALL_OUTPUTS if arguments.asked(name) else Reason.ALL_OUTPUTS_BY_DEFAULT).of(name=name)
    unknown = [name for name, value in inputs.items() if name not in KNOWN_INPUTS and not _says_nothing(value)]
    types = [name for name in unknown if name in TOKEN_TYPES and takes_media(facts.view.model)]
    if others := [name for name in unknown if name not in types]:
        return _input_refusal(facts, others[0])
    for name in types:
        if bool(inputs[name].any()):
            return Reason.TYPES_GIVEN.of(name=name)
    if inputs.get("logits_to_keep") not in (None, 1):
        return (Reason.PROMPT_LOGITS if arguments.gives("logits_to_keep") else Reason.OTHER_LOGITS).of()
    if asked.input_ids.dim() != 2 or asked.input_ids.shape[1] < 2:
        return Reason.NO_PROMPT.of()
    if is_users(stock_cache) and not isinstance(stock_cache, RelayCache):
        return Reason.CACHE_GIVEN.of(name=CACHE)
    return cache_refusal(stock_cache, arguments.names_cache)


def _says_nothing(value: Any) -> bool:
    """Whether an input is none, or an empty dictionary, as multimodal models have it for text."""
    return value is None or (isinstance(value, dict) and not value)


def _input_refusal(facts: CallFacts, name: str) -> Refusal:
    """The reason of an input that is not relayed. generate() may have made it from one of the caller's (images)."""
    given = facts.arguments.inputs
    if is_media(name):
        media = sorted(filter(is_media, given or ())) or [name]
        return Reason.MEDIA_GIVEN.of(names=", ".join(media))
    if facts.arguments.gives(name) or (given or frozenset()) - KNOWN_INPUTS:
        return Reason.INPUT_GIVEN.of(name=name)
    return (Reason.INPUT_ADDED if is_stocks(facts.view.model, "generate") else Reason.INPUT_OF_MODEL).of(name=name)


def padding_refusal(attended: Tensor | None) -> Refusal | None:
    """Why a mask forbids it, or None. `attended`: `[B, n]` bool, on the host, or None where all tokens are."""
    if attended is None or bool(attended[:, -1].all()):
        return None
    # A query in the padding may see nothing. Then the output, which is read here, depends on the implementation.
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


def state_refusal(modules: Iterable[nn.Module], prompts: Prompts, chunked: bool) -> Refusal | None:
    """Why a call of a model with recurrent layers is not served, or None. `chunked`: it asks for a chunked prefill."""
    if chunked:
        return Reason.CHUNKED_STATES.of()
    if prompts.holes:
        return Reason.HOLES_IN_STATES.of()
    if bool(prompts.start.any()) and any(map(_shows_padding, modules)):
        return Reason.PADDED_STATES.of()
    return None


def _shows_padding(module: nn.Module) -> bool:
    """Whether a module has a convolution and, before it, a projection with a bias.

    Stock zeroes padding only before the projection. So the bias enters the convolution, and the first tokens of a row
    see it.
    """
    # peft wraps a layer in a module that holds it as base_layer.
    children = {name: getattr(child, "base_layer", child) for name, child in module.named_children()}
    before = [child for name, child in children.items() if name not in _BEHIND_CONVOLUTIONS]
    convolutions = [child for child in before if isinstance(child, nn.Conv1d)]
    biased = [child for child in before if getattr(child, "bias", None) is not None]
    return bool(convolutions) and any(child not in convolutions for child in biased)


def position_refusal(facts: CallFacts, asked: PrefillInputs, prompts: Prompts, positions: str) -> Refusal | None:
    """Why the positions forbid relaying, or None: they must be those that generate() counts from the mask.

    `positions`: where the model takes positions from; see `Architecture.positions`. "left out": they are given to it,
    but its forward does not get them.
    """
    position_ids, mask = asked.inputs.get("position_ids"), asked.inputs.get("attention_mask")
    given = position_ids is not None and positions not in ("columns", "left out")
    # What else reads the mask multiplies by it, or adds it up; from positions alone its numbers could not be told.
    reads_mask = position_ids is None or positions == "relative" or facts.view.architecture.recurrent is not None
    if reads_mask and _has_numbers(mask):
        return Reason.MASK_OF_NUMBERS.of()
    if bool(prompts.start.any()) and not given and positions != "relative":
        return Reason.PADDED_COLUMNS.of()
    if position_ids is None:
        return None
    if prompts.holes and positions == "columns":  # GIT reads position_ids in a prompt's first forward alone
        return Reason.HOLES_IN_COLUMNS.of()
    rows, columns = prompts.ids.shape
    expected, read = np.arange(columns), np.array(True)
    if prompts.attended is not None:
        read = prompts.attended.numpy()  # nothing reads padding, where some types count otherwise
        expected = read.cumsum(axis=1) - 1
    # M-RoPE's types count in planes (text, time, height, width), in which text has the same positions.
    given_rows, width = (1, 1, *position_ids.shape)[-2:]
    planes = position_ids.dim() == 3 and len(position_ids) > 1
    fits = (planes or position_ids.dim() == 2) and width == columns and (prompts.attended is None or given_rows == rows)
    if fits and bool(((position_ids.cpu().numpy() == expected) | ~read).all()):
        return None
    if _has_numbers(mask):
        return Reason.MASK_OF_NUMBERS.of()
    if facts.arguments.gives("position_ids"):
        return Reason.POSITIONS_GIVEN.of()
    return (Reason.POSITIONS_OF_ITS_OWN if counts_positions_itself(facts.view.model) else Reason.POSITIONS_COUNTED).of()


def _has_numbers(mask: Tensor | None) -> bool:
    """Whether a mask has other values than 0 and 1, such as the numbers of packed segments. Stock sums them up."""
    return mask is not None and mask.dtype is not torch.bool and bool((mask != mask.bool()).any())


def rope_refusal(configs: Iterable[PreTrainedConfig], length: int) -> Refusal | None:
    """Why RoPE forbids a prompt of `length` tokens, or None: its frequencies differ from those of a shorter prefix."""
    for config in configs:
        limit = rope_limit(config)
        if limit is not None and length >= limit:
            return Reason.LONG_ROPE.of(limit=limit, length=length)
    return None
