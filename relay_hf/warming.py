"""Prefixes ahead of their first request, and what a call would do without running it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from . import eligibility
from .architectures import architecture_of
from .cache_utils import keeps_state
from .call import open_call
from .decision import decide
from .frame import RelayError
from .keeping import context_of
from .levels import fill_and_keep
from .prefix import KeptPrefix, Run, divided, keeping_refusal, outline
from .progress import progress_bar
from .report import Explanation
from .sharing import match

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .relay import Relay

_DEFAULT_NEW_TOKENS = 20  # what generate() takes where neither the call nor the model says how many


def read_prefix(model: PreTrainedModel, text_or_ids: str | Sequence[int] | Tensor, tokenizer: Any) -> Tensor:
    """`[P]` int64 token ids on the host, checked against the model."""
    if isinstance(text_or_ids, str):
        if tokenizer is None:
            raise ValueError("text_or_ids is text, so tokenizer is needed; got None. Pass tokenizer=..., or token ids.")
        text_or_ids = tokenizer(text_or_ids)["input_ids"]
    try:
        ids = torch.as_tensor(text_or_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"text_or_ids must be text or token ids; got {type(text_or_ids).__name__}.") from error
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.dim() != 1 or len(ids) == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"text_or_ids must be at least one integer token id, [P] or [1, P]; got {tuple(ids.shape)} of {ids.dtype}."
        )
    ids = ids.detach().to("cpu", torch.int64)
    eligibility.check_vocabulary(model, ids, "text_or_ids")
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None and 0 < context < len(ids):
        raise ValueError(f"text_or_ids must fit the model's context of {context} tokens; got {len(ids)}. Shorten it.")
    return ids


def warm(relay: Relay, ids: Tensor, pin: bool, chunk: int | None, progress: bool | None) -> KeptPrefix:
    """Prefill what is not kept of `ids` (`[P]`), `chunk` tokens at a time, and keep it; inside an open call.

    Each chunk is kept before the next one, which goes on from it: so it takes no mask, and an interrupt loses little.
    Models with recurrent layers take all at once: where their chunks begin changes stock's own output.
    """
    check_keepable(relay, len(ids))
    if keeps_state(_default_cache(relay)):
        chunk = None
    done = match(relay, [ids])[0][0].length
    ends = [*range(done + (chunk or len(ids)), len(ids), chunk or len(ids)), len(ids)]
    with progress_bar("relay_hf: prefix", len(ids), done, progress if len(ends) > 1 else False) as reached:
        for end in ends:
            prefix = _keep_prefix(relay, ids[:end])
            if end < len(ids):
                _check_room(relay, prefix, len(ids))
            reached(end)
    prefix.pinned = prefix.pinned or pin
    return prefix


def _check_room(relay: Relay, start: KeptPrefix, length: int) -> None:
    """Raise a RelayError if a prefix of `length` tokens, of which these are the first, will not fit in the store."""
    size = sum(node.nbytes for node in start.path()) * length // len(start)
    if size > relay.keeper.store.budget:
        raise _too_large(relay, size)


def _too_large(relay: Relay, size: int) -> RelayError:
    budget = relay.keeper.store.budget
    pinned = ", of which pinned prefixes take a part" if any(each.pinned for each in relay.prefixes) else ""
    return RelayError(
        f"the prefix takes {size} bytes, more than the store's budget of {budget}{pinned}; raise max_store_bytes"
    )


def _keep_prefix(relay: Relay, ids: Tensor) -> KeptPrefix:
    architecture = architecture_of(relay.text_config)
    recurrent = keeps_state(_default_cache(relay))
    (found,), witness = match(relay, [ids])
    reused = found.length
    if recurrent and architecture.recurrent == "steps" and reused < len(ids):
        reused = 0
    runs = divided([Run(0, ids, (0,))], lambda row, first: reused, [ids])
    inputs = relay.forward_inputs.keys() & {"position_ids", "logits_to_keep"}
    try:
        filled, kept = fill_and_keep(relay, runs, lambda run: found.runs(run.start, run.end), inputs, before=witness)
    except (RelayError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"its prefill raised {type(error).__name__}: {error}"
        raise RelayError(f"no prefix of this model can be kept: {what}") from error
    prefix = kept[-1] if kept else relay.keeper.ending(ids, context_of(relay.model))
    if prefix is None:
        size = sum(piece.nbytes for _, own in filled for piece in own)
        if size > relay.keeper.store.budget or any(each.pinned for each in relay.prefixes):
            raise _too_large(relay, size)
        raise RelayError("the model changed while the prefix was prefilled; warm it again")
    return prefix


def check_keepable(relay: Relay, length: int) -> None:
    """Raise a RelayError that says why no prefix of `length` tokens can be kept now; inside an open call."""
    model, call, cache = relay.model, open_call(), _default_cache(relay)
    refused = (
        relay.model_refusal
        or eligibility.model_refusal(model, call.configs)
        or eligibility.cache_refusal(cache)
        or keeping_refusal(model, call.modules)
        or eligibility.hook_refusal(call.modules, relay)
        or eligibility.rope_refusal(call.configs, length)
    )
    if not refused and keeps_state(cache):
        refused = eligibility.recurrent_refusal(architecture_of(relay.text_config), model)
    if refused:
        raise RelayError(f"no prefix of this model can be kept: {refused}")


def _default_cache(relay: Relay) -> DynamicCache | None:
    """The cache that generate() makes for the model; None where the model makes its own."""
    takes_one = relay.cache_name in relay.forward_inputs and relay.model._supports_default_dynamic_cache()
    return DynamicCache(config=relay.text_config) if takes_one else None


def explain(relay: Relay, input_ids: Tensor, attention_mask: Tensor | None) -> Explanation:
    """The report of a call that is not run."""
    model = relay.model
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be [rows, tokens]; got {tuple(input_ids.shape)}.")
    eligibility.check_vocabulary(model, input_ids, "input_ids")
    inputs: dict[str, Any] = {
        "attention_mask": attention_mask,
        relay.cache_name: _default_cache(relay),
    }
    if "position_ids" in relay.forward_inputs:
        # M-RoPE types note what images shift on the model meanwhile; a look must not change that.
        noted = [(module, module.rope_deltas) for module in open_call().modules if hasattr(module, "rope_deltas")]
        try:
            inputs["position_ids"] = model._prepare_position_ids_for_generation(
                input_ids, {"attention_mask": attention_mask}
            )
        finally:
            for module, deltas in noted:
                module.rope_deltas = deltas
    config = copy.deepcopy(model.generation_config)
    if config.max_new_tokens is not None or config.max_length is None:
        config.max_length = input_ids.shape[1] + (config.max_new_tokens or _DEFAULT_NEW_TOKENS)
    decision = decide(relay, input_ids, config, inputs)
    found = Explanation(**vars(decision.report()), tree=outline(decision.runs))
    if found.relayed:
        found.backend = "model" if architecture_of(relay.text_config).parted else relay.backend
    return found
