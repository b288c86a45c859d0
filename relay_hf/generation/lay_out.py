"""Makes the RelayCache of a call: its shared runs, prefilled, and the layout of its rows."""

from __future__ import annotations

import torch

from ..cache_utils import PrefixKV, RelayCache, RowLayout
from ..cache_utils.columns import own_columns
from ..model.device import free_bytes
from ..model.upstream.models import new_tokens
from ..model.view import ModelView
from .call import GenerateCall
from .decision import Decision
from .facts import PrefillInputs
from .prefix_prefill import PrefilledTree, prefill_and_store, prefill_tree, why_unkept

# The share of the free memory that may be reserved for tokens to come. A call with max_new_tokens=4096 for 32 rows of a
# 7B model in bf16 would need 64 GiB, but may stop early: it should neither fail for lack of them nor starve others.
_SHARE_RESERVED = 0.25


def lay_out(
    call: GenerateCall, decision: Decision, asked: PrefillInputs
) -> tuple[RelayCache, list[tuple[tuple[int, ...], PrefixKV]]]:
    """The cache, and its shared runs with their rows. Runs that are not kept are prefilled."""
    view, prompts, input_ids = call.facts.view, decision.prompts, asked.input_ids
    given = asked.inputs.get(view.cache_name)
    cache = given if isinstance(given, RelayCache) else RelayCache(view.text_config, like=given)
    prefilled = _prefill(call, decision, asked)
    lengths = decision.shared_lengths
    ends = [start + length for start, length in zip(prompts.start.tolist(), lengths, strict=True)]
    offset = min(ends)
    own_start = [end - offset for end in ends]
    rows = RowLayout(
        offset=offset,
        shared_length=lengths,
        own_start=torch.tensor(own_start, device="cpu") if any(own_start) else None,
        reserve=input_ids.shape[1] - offset + new_tokens(asked.generation_config, input_ids.shape[1]),
        spare=spare_bytes(view, cache),
    )
    shared = [(each.rows, piece) for each, pieces in prefilled for piece in pieces]
    cache.share(shared, rows, len(prompts.ids), view.context)
    rows.holes = own_columns(rows, prompts.attended)  # computed on the host, then moved to the device once
    rows.holes = None if rows.holes is None else rows.holes.to(input_ids.device)
    rows.own_start = None if rows.own_start is None else rows.own_start.to(view.device)
    return cache, shared


def spare_bytes(view: ModelView, cache: RelayCache) -> int:
    """Bytes that a layer of the cache may take for tokens to come."""
    return int(_SHARE_RESERVED * free_bytes(view.device)) // max(len(cache.kv_layers), 1)


def _prefill(call: GenerateCall, decision: Decision, asked: PrefillInputs) -> PrefilledTree:
    """The KV of the shared runs: from the store, from the model, or from both."""
    given = {name for name, value in asked.inputs.items() if value is not None}
    if decision.keep:
        before, chunk = decision.fingerprint, asked.chunk
        filled, kept = prefill_and_store(call, decision.runs, decision.held, given, chunk, before)
        if None in kept:
            decision.unkept = why_unkept(call.facts, filled)
        return filled
    return prefill_tree(call, decision.runs, decision.held, given, asked.chunk)
