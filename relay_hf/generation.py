"""The prefill hook: from a generate() call to a RelayCache that holds its prompt."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .cache_utils import RelayCache, SharedLayer
from .cache_utils.layer import RelayLayer, RowLayout
from .call import current_call, open_call
from .decision import Decision, context_of, decide, refusal
from .eligibility import TokenIdError
from .forward import own_columns
from .frame import RelayError, UnfitModelError
from .keeping import embedded
from .kernels.segment import Segment
from .prefix import KeptPrefix
from .report import RelayReport

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from transformers import GenerationConfig

    from .relay import Relay

logger = logging.getLogger("relay_hf")

# Own columns reserved for tokens to come; beyond that the buffers grow by half. 512 tokens of a 7B model in bf16 are
# 256 MiB a row: calls that say max_new_tokens=4096 and stop early should not pay for all of it.
_MOST_RESERVED = 512


def prefill(
    relay: Relay,
    stock: Callable[..., Any],
    input_ids: Tensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    is_first_iteration: bool = True,
) -> Any:
    """generate()'s prefill, in the shape of `GenerationMixin._prefill`; `stock` is the model's own."""
    arguments = (input_ids, generation_config, model_kwargs)
    call = current_call.get()
    if call is None or call.owner is not relay:  # a decoding loop that was started without generate()
        return stock(*arguments, is_first_iteration=is_first_iteration)
    given = model_kwargs.get("past_key_values")
    if isinstance(given, RelayCache) and given.get_seq_length() > 0:
        call.report = _continue(relay, given, *arguments, is_first_iteration)
        call.cache = given if call.report.relayed else None
        return stock(*arguments, is_first_iteration=is_first_iteration)
    failure = None
    try:
        decision = decide(relay, input_ids, generation_config, model_kwargs, is_first_iteration)
        relay.keeper.remember(decision.prompts.first_row, decision.kept)
        if decision.length:
            return _relayed(relay, decision, *arguments)
    except TokenIdError:
        raise
    except Exception as error:
        failure = error
        decision = Decision(_failure_reason(error))
        logger.warning("relay_hf: the call goes on as stock: %s", decision.reason)
    finally:
        call.capture = None
    call.cache = None
    call.report = _counted(decision.report(), input_ids, model_kwargs)
    if isinstance(given, RelayCache):
        given.reset()
        model_kwargs["past_key_values"] = DynamicCache(config=relay.text_config)
    outputs = stock(*arguments, is_first_iteration=is_first_iteration)
    # Where stock fails too, the caller sees stock's own error, and the model is not to blame.
    if isinstance(failure, UnfitModelError):
        relay.model_refusal = decision.reason
    elif failure is not None and not isinstance(failure, (RelayError, torch.OutOfMemoryError)):
        relay.unexplained += 1
        if relay.unexplained > 1:  # once may be the moment's fault, twice is the model's
            relay.model_refusal = decision.reason
    return outputs


def prefill_prefix(
    relay: Relay, ids: Tensor, kept: list[SharedLayer] | None, inputs: Collection[str], chunk: int | None = None
) -> list[SharedLayer]:
    """Prefill a prefix at batch size 1 and take K and V of each layer as its attention saw them.

    Args:
        relay: the model's handle.
        ids: `[P]`, on the host.
        kept: the layers of its first tokens, if these have been prefilled already.
        inputs: names of the keyword inputs that the forwards of the call have.
        chunk: tokens to put through the model at once, or None for all.
    """
    model = relay.model
    cache = RelayCache(relay.text_config)
    start = len(kept[0]) if kept else 0
    cache.rows.reserve = len(ids) - start
    if kept:
        cache.share(kept, RowLayout(offset=start, shared_length=start, reserve=len(ids) - start))
    prefix_ids = ids.to(model.device)[None]
    own_inputs: dict[str, Any] = {"use_cache": True, "attention_mask": None}
    if "logits_to_keep" in inputs:
        own_inputs["logits_to_keep"] = 1
    if "position_ids" in inputs:
        own_inputs["position_ids"] = torch.arange(len(ids), device=model.device)[None]
    call = open_call()
    captured: dict[int, tuple[Tensor, Tensor]] = {}
    call.cache, call.capture = cache, captured
    _run(relay, prefix_ids, own_inputs, cache, start, chunk)
    call.capture = None
    missed = [index for index in range(len(cache.layers)) if index not in captured]
    if missed:
        raise UnfitModelError(
            f"not all attention goes through Transformers' attention interface: layers {missed} did not"
        )
    layers = [_shared_layer(layer, captured[index]) for index, layer in enumerate(cache.layers)]
    return [old.then(new) for old, new in zip(kept, layers, strict=True)] if kept else layers


def prefill_and_keep(
    relay: Relay, ids: Tensor, kept: list[SharedLayer] | None, inputs: Collection[str], chunk: int | None = None
) -> KeptPrefix:
    """`prefill_prefix`, and what it gives kept for later calls if the model stayed the same meanwhile."""
    modules, embedding = open_call().modules, relay.model.get_input_embeddings()
    before = relay.keeper.witness(modules)
    rows = embedded(embedding, ids)
    layers = prefill_prefix(relay, ids, kept, inputs, chunk)
    prefix = KeptPrefix(ids, layers, context_of(relay.model), rows)
    relay.keeper.keep(before, modules, prefix, extends=kept is not None)
    return prefix


def _failure_reason(error: Exception) -> str:
    return str(error) if isinstance(error, RelayError) else f"a relayed prefill raised {type(error).__name__}: {error}"


def _relayed(
    relay: Relay, decision: Decision, input_ids: Tensor, generation_config: GenerationConfig, inputs: dict[str, Any]
) -> Any:
    call, prompts = open_call(), decision.prompts
    chunk = generation_config.prefill_chunk_size
    # A single row gains nothing from a prefill of its own for the prefix: what is to be kept is cut from the row's KV.
    cut = decision.keep and len(prompts.ids) == 1 and decision.reused < decision.length
    shared = decision.reused if cut else decision.length
    layers = _kept_layers(decision) if cut else _prefix_layers(relay, decision, inputs, chunk)
    given = inputs.get("past_key_values")
    cache = given if isinstance(given, RelayCache) else RelayCache(relay.text_config)
    first = int(prompts.start.min())
    offset = first + shared
    own_start = prompts.start - first
    new_tokens = max((generation_config.max_length or 0) - input_ids.shape[1], 1)
    rows = RowLayout(
        offset=offset,
        shared_length=shared,
        own_start=own_start.to(relay.model.device) if bool(own_start.any()) else None,
        reserve=input_ids.shape[1] - offset + min(new_tokens, _MOST_RESERVED),
    )
    cache.share(layers, rows, context_of(relay.model))
    rows.holes = own_columns(cache, inputs.get("attention_mask"))
    call.cache = cache
    call.report = decision.report()
    if not cut:
        outputs = _run(relay, input_ids, inputs, cache, offset, chunk)
    else:
        with _keeping(relay, decision, cache):
            outputs = _run(relay, input_ids, inputs, cache, offset, chunk)
    inputs["past_key_values"] = cache
    return outputs


@contextmanager
def _keeping(relay: Relay, decision: Decision, cache: RelayCache) -> Iterator[None]:
    """Keep the start of the single row that is prefilled inside, copied out of its own KV."""
    call, ids = open_call(), decision.prompts.first_row[: decision.length].clone()
    before = relay.keeper.witness(call.modules)
    rows = embedded(relay.model.get_input_embeddings(), ids)
    captured: dict[int, tuple[Tensor, Tensor]] = {}
    call.capture = captured
    yield
    call.capture = None
    length = decision.length - decision.reused
    layers = [_shared_layer(layer, captured[i]).first(length).clone() for i, layer in enumerate(cache.layers)]
    kept = _kept_layers(decision)
    if kept is not None:
        layers = [old.then(new) for old, new in zip(kept, layers, strict=True)]
    prefix = KeptPrefix(ids, layers, context_of(relay.model), rows)
    relay.keeper.keep(before, call.modules, prefix, extends=kept is not None)


def _kept_layers(decision: Decision) -> list[SharedLayer] | None:
    """The part of a kept prefix that serves, as views; None if none does."""
    if decision.kept is None:
        return None
    return [layer.first(decision.reused) for layer in decision.kept.layers]


def _prefix_layers(relay: Relay, decision: Decision, inputs: dict[str, Any], chunk: int | None) -> list[SharedLayer]:
    """The prefix, from the store, from the model, or both."""
    kept = _kept_layers(decision)
    if kept is not None and decision.reused == decision.length:
        return kept
    ids = decision.prompts.first_row[: decision.length].clone()
    given = {name for name, value in inputs.items() if value is not None}
    if not decision.keep:
        return prefill_prefix(relay, ids, kept, given, chunk)
    return prefill_and_keep(relay, ids, kept, given, chunk).layers


def _run(
    relay: Relay, input_ids: Tensor, inputs: dict[str, Any], cache: RelayCache, start: int, chunk: int | None
) -> Any:
    """Put the columns of `input_ids` from `start` on through the model, as `GenerationMixin._prefill` does.

    That method is not called itself: chunked, it begins at column 0 whatever the cache holds (5.17).
    """
    model, columns = relay.model, input_ids.shape[1]
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    outputs = None
    for begin in range(start, columns, chunk or columns):
        end = min(begin + chunk, columns) if chunk else columns
        step = {**inputs, "past_key_values": cache}
        step["attention_mask"] = None if mask is None else mask[:, :end]
        if positions is not None:
            step["position_ids"] = positions[:, :end]
        model_inputs = model.prepare_inputs_for_generation(
            input_ids[:, :end], next_sequence_length=end - begin, is_first_iteration=True, **step
        )
        outputs = model(**model_inputs, return_dict=True)
    return outputs


def _shared_layer(layer: RelayLayer, captured: tuple[Tensor, Tensor]) -> SharedLayer:
    segment = Segment(captured[0][0], captured[1][0])
    keys, values = layer.own()
    return SharedLayer(segment, (keys[0], values[0]))


def _counted(report: RelayReport, input_ids: Tensor, inputs: dict[str, Any]) -> RelayReport:
    """With the rows and tokens of a call whose prompts were not looked at."""
    if not report.rows and input_ids.dim() == 2:
        mask = inputs.get("attention_mask")
        report.rows = len(input_ids)
        report.prompt_tokens_computed = input_ids.numel() if mask is None else int(mask.sum())
    return report


def _continue(
    relay: Relay,
    cache: RelayCache,
    input_ids: Tensor,
    generation_config: GenerationConfig,
    inputs: dict[str, Any],
    first: bool,
) -> RelayReport:
    """A RelayCache that an earlier call filled, given back: goes on as it is, or as a DynamicCache where it can't."""
    past, mask = cache.get_seq_length(), inputs.get("attention_mask")
    refused = refusal(relay, input_ids, generation_config, inputs, first, cache)
    if refused is None and cache.context not in (None, context_of(relay.model)):
        refused = "the cache was filled on another device, in another dtype or under another autocast"
    try:
        cache.rows.holes = own_columns(cache, mask)
    except RelayError as error:
        refused = refused or str(error)
    columns = max(input_ids.shape[1] - past, 0) if mask is None else mask.shape[1] - past
    computed = len(input_ids) * columns if mask is None else int(mask[:, past:].sum())
    if refused is not None:
        inputs["past_key_values"] = cache.to_dynamic()
        reason = f"{refused}; continued on a DynamicCache"
        return RelayReport(False, reason, rows=len(input_ids), prompt_tokens_computed=computed)
    return RelayReport(
        relayed=cache.is_shared,
        reason="a returned cache, continued",
        rows=len(input_ids),
        prefix_length=cache.rows.shared_length,
        prompt_tokens_computed=computed,
        levels=int(cache.is_shared),
    )
