"""A call on a RelayCache that an earlier call has filled: it continues on that cache, or on it as a DynamicCache."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..cache_utils import RelayCache
from ..cache_utils.columns import own_columns
from ..errors import RelayError
from ..graphs import own_copy
from ..model.device import on_host
from ..model.upstream.behaviour import CHUNKS_GO_ON
from ..model.upstream.caches import attending
from ..reasons import Reason, Refusal
from ..report import RelayReport
from .call import GenerateCall
from .decide import refusal
from .eligibility import padding_refusal
from .facts import CallFacts, PrefillInputs
from .lay_out import spare_bytes
from .notices import CONTINUED


class Continuation(NamedTuple):
    """How a call goes on from a returned cache.

    Attributes:
        report: the report of the call; if it is not relayed, the cache goes on as a DynamicCache.
        holes: the rows' own columns that may be attended to, on the host; None for all.
    """

    report: RelayReport
    holes: torch.Tensor | None = None


def go_on(call: GenerateCall, cache: RelayCache, asked: PrefillInputs) -> RelayReport:
    """Make a returned cache ready for the call.

    If the call can't be relayed, the cache holds whole rows from now on, in layers of Transformers' own. It is still
    the caller's own object, which his code may read and change between the steps of the call, as it may stock's.
    """
    cache.take_over()
    view, rows = call.facts.view, cache.rows
    report, holes = continuation(call.facts, cache, asked)
    if not report.relayed:
        if not cache.is_joined:
            cache.join()
        return report
    rows.holes = None if holes is None else holes.to(asked.input_ids.device)
    if rows.own_start is not None and rows.own_start.is_inference():
        # A tensor made in inference mode can't be written to outside of it, and decode steps write to this one.
        rows.own_start = own_copy(rows.own_start)
    rows.reserve = max((asked.generation_config.max_length or 0) - rows.offset, 0)
    rows.spare = spare_bytes(view, cache)
    return report


def continuation(facts: CallFacts, cache: RelayCache, asked: PrefillInputs) -> Continuation:
    """How a call goes on from a returned cache. Nothing is changed yet."""
    input_ids = asked.input_ids
    if not attending(cache):  # a cache of states alone does not know how many columns it has seen
        return Continuation(RelayReport.of(Reason.RETURNED_OF_STATES.of(), rows=len(input_ids)))
    past, mask = cache.get_seq_length(), asked.inputs.get("attention_mask")
    attended = None if mask is None else torch.from_numpy(on_host(mask))
    columns = max(input_ids.shape[1] - past, 0)
    computed = len(input_ids) * columns if attended is None else int(attended.numpy()[:, past:].sum())
    if cache.is_joined:
        changed = Reason.RETURNED_JOINED.of()
        return Continuation(RelayReport.of(changed, rows=len(input_ids), prompt_tokens_computed=computed))
    refused, holes = _refusal(facts, cache, asked, attended), None
    try:
        holes = own_columns(cache.rows, attended)
    except RelayError as error:
        refused = refused or Reason.UNFIT_CALL.of(why=error)
    if refused is not None:
        holes = None
    report = RelayReport.of(
        refused or Reason.RETURNED_CACHE.why(),
        rows=len(input_ids),
        prefix_length=max(cache.rows.shared_lengths),
        prompt_tokens_computed=computed,
        levels=cache.levels,
    )
    if refused is not None:
        report.reason += CONTINUED
    return Continuation(report, holes)


def _refusal(
    facts: CallFacts, cache: RelayCache, asked: PrefillInputs, attended: torch.Tensor | None
) -> Refusal | None:
    """Why a call on the cache can't be relayed, or None. `attended`: `[B, n]` bool, on the host; None: all tokens."""
    refused = refusal(facts, asked, cache) or padding_refusal(attended)
    if refused is None and cache.context not in (None, facts.view.context):
        refused = Reason.CACHE_ELSEWHERE.of()
    if asked.chunk is not None and not CHUNKS_GO_ON:
        refused = Reason.CHUNKS_ON_CACHE.of()
    if refused is None and not cache.is_shared:
        # Relaying gains nothing here. And if the call that filled it was not relayed, the model may be unfit.
        refused = Reason.CACHE_UNSHARED.of()
    if refused is None and attended is not None and attended.shape[1] <= cache.get_seq_length():
        # Stock takes such a mask as that of the first columns, and so hides a part of the tokens that it feeds.
        refused = Reason.CACHE_LONGER.of()
    return refused
