"""Putting tokens through the model with a RelayCache: a prefix at batch size 1, then the rows' own tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .architectures import architecture_of
from .cache_utils import RelayCache, RowLayout, SharedLayer
from .call import open_call
from .decision import context_of
from .frame import RelayError
from .keeping import embedded
from .prefix import KeptPrefix

if TYPE_CHECKING:
    from collections.abc import Collection

    from .relay import Relay


def prefill_prefix(
    relay: Relay,
    ids: Tensor,
    inputs: Collection[str],
    chunk: int | None = None,
    kept: list[SharedLayer] | None = None,
    start: int = 0,
) -> list[SharedLayer]:
    """Prefill a prefix at batch size 1 and take what each layer keeps of it: K and V as its attention saw them.

    Args:
        relay: the model's handle.
        ids: `[P]`, on the host.
        inputs: names of the keyword inputs that the forwards of the call have.
        chunk: tokens to put through the model at once, or None for all.
        kept: the layers of its first `start` tokens, if these have been prefilled already.
    """
    model = relay.model
    cache = RelayCache(relay.text_config)
    rows = RowLayout(start, start, reserve=len(ids) - start)
    cache.share(kept, rows)
    prefix_ids = ids.to(model.device)[None]
    own_inputs: dict[str, Any] = {"use_cache": True, "attention_mask": None}
    if "logits_to_keep" in inputs:
        own_inputs["logits_to_keep"] = 1
    if "position_ids" in inputs:
        own_inputs["position_ids"] = torch.arange(len(ids), device=model.device)[None]
    call = open_call()
    captured: dict[int, tuple[Tensor, Tensor]] = {}
    call.cache, call.capture = cache, captured
    run(relay, prefix_ids, own_inputs, cache, start, chunk)
    call.capture = None
    layers = cache.freeze(captured)
    return [old.then(new) for old, new in zip(kept, layers, strict=True)] if kept else layers


def prefill_and_keep(
    relay: Relay,
    ids: Tensor,
    inputs: Collection[str],
    chunk: int | None = None,
    kept: list[SharedLayer] | None = None,
    start: int = 0,
) -> KeptPrefix:
    """`prefill_prefix`, and what it gives kept for later calls if the model stayed the same meanwhile."""
    modules, embedding = open_call().modules, relay.model.get_input_embeddings()
    before = relay.keeper.witness(modules)
    rows = embedded(embedding, ids)
    layers = prefill_prefix(relay, ids, inputs, chunk, kept, start)
    prefix = KeptPrefix(ids, layers, context_of(relay.model), rows)
    relay.keeper.keep(before, modules, prefix, extends=kept is not None)
    return prefix


def run(
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
        step = {**inputs, relay.cache_name: cache}
        step["attention_mask"] = None if mask is None else mask[:, :end]
        if positions is not None:
            step["position_ids"] = positions[:, :end]
        model_inputs = model.prepare_inputs_for_generation(
            input_ids[:, :end], next_sequence_length=end - begin, is_first_iteration=True, **step
        )
        if positions is not None and model_inputs.get("position_ids") is None and cache.rows.padded:
            raise RelayError("the model counts columns, and rows are padded")
        outputs = model(**model_inputs, return_dict=True)
    return outputs


def run_gapless(
    relay: Relay,
    input_ids: Tensor,
    inputs: dict[str, Any],
    cache: RelayCache,
    layers: list[SharedLayer],
    chunk: int | None,
) -> Any:
    """`run` over the own tokens of rows of a model with recurrent layers, which see padding as tokens.

    Rows of equal own length go through the model together, without the padding before their own tokens, each group
    with a cache of its own; `cache` (its layout set, its layers empty) gathers what they leave.

    Returns:
        The model's outputs, with the logits of the last token alone: `[B, 1, vocabulary]`.
    """
    call, rows, columns = open_call(), cache.rows, input_ids.shape[1]
    if architecture_of(relay.text_config).recurrent == "steps":
        chunk = 1
    starts = torch.zeros(len(input_ids), dtype=torch.int64) if rows.own_start is None else rows.own_start.cpu()
    parts, logits = [], []
    for start in starts.unique().tolist():
        members = (starts == start).nonzero().flatten()
        begin = rows.offset + start
        own = replace(rows, offset=begin, own_start=None, reserve=columns - begin)
        part = RelayCache(relay.text_config)
        part.share(layers, own, cache.context, len(members))
        call.cache = part
        taken = {name: _rows_of(value, members, len(input_ids)) for name, value in inputs.items()}
        if not rows.parted:
            taken["attention_mask"] = None  # nothing is hidden from a group, and the mask is as wide as the prompt
        outputs = run(relay, input_ids[members.to(input_ids.device)], taken, part, begin, chunk)
        parts.append((part, members))
        logits.append(outputs.logits[:, -1:])
    cache.gather(parts, len(input_ids), columns - rows.offset)
    order = torch.cat([members for _, members in parts]).argsort()
    outputs.logits = torch.cat(logits)[order.to(logits[0].device)]
    outputs[relay.cache_name] = cache
    return outputs


def _rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """The part of a forward's input that belongs to some of the rows."""
    whole = not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != batch
    return value if whole else value[rows.to(value.device)]
