"""`model.relay.warm()`: prefills and keeps a prefix ahead of its first request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cache_utils import PrefixKV
from ..errors import RelayError
from ..model.device import is_out_of_memory
from ..model.fingerprint import keeping_refusal
from ..model.upstream.caches import keeps_state
from ..model.vocabulary import check_prefix
from ..prefix import KeptPrefix, Planned, PrefixNode, divided
from ..prefix.store import token_overhead
from . import eligibility, eligible_models
from .call import GenerateCall
from .eligible_code import code_refusal
from .facts import CallFacts
from .given_inputs import as_rows, encoded, is_text
from .notices import tell_short
from .prefix_prefill import prefill_and_store, prefill_tree
from .progress import progress_bar
from .sharing import match

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_prefix(model: PreTrainedModel, text_or_ids: Any, tokenizer: Any) -> Tensor:
    """`[P]` int64 token ids on the host, checked against the model."""
    if is_text(text_or_ids):
        if not isinstance(text_or_ids, str) and len(text_or_ids) > 1:
            raise ValueError(f"text_or_ids must be one text; got {len(text_or_ids)}. Warm them one after the other.")
        text_or_ids = encoded(text_or_ids, tokenizer, "text_or_ids")
    if isinstance(text_or_ids, Mapping):
        text_or_ids = _attended(as_rows(text_or_ids))
    try:
        ids = torch.as_tensor(text_or_ids, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"text_or_ids must be text or token ids; got {type(text_or_ids).__name__}.") from error
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.dim() != 1 or len(ids) == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"text_or_ids must be at least one integer token id, [P] or [1, P]; got {tuple(ids.shape)} of {ids.dtype}."
        )
    ids = ids.detach().to(torch.int64)
    check_prefix(model, ids, len(ids), "text_or_ids")
    return ids


def _attended(inputs: dict[str, Any]) -> Any:
    """The ids of what a tokenizer returned, without padding."""
    if "input_ids" not in inputs:
        raise ValueError(
            f"text_or_ids must hold input_ids; got {', '.join(map(repr, inputs)) or 'nothing'}. Pass what the "
            "tokenizer returns."
        )
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return ids if mask is None or len(ids) > 1 else ids[mask.bool()]


def warm(call: GenerateCall, ids: Tensor, pin: bool, chunk: int | None, progress: bool | None) -> KeptPrefix:
    """Prefill the tokens of `ids` (`[P]`) that are not kept, `chunk` at a time, and keep them.

    Each chunk is kept before the next one, which goes on from it. So it needs no mask, and an interrupt loses little.
    Models with recurrent layers take all tokens at once, because stock's own output depends on where chunks begin.
    """
    facts, view = call.facts, call.facts.view
    check_keepable(facts, len(ids))
    if keeps_state(view.default_cache()):
        chunk = None
    done = match(facts, [ids])[0][0].length
    ends = [*range(done + (chunk or len(ids)), len(ids), chunk or len(ids)), len(ids)]
    if len(ends) > 1:
        size = kv_of_one_token(call).nbytes + token_overhead(view.embedding)
        if facts.store.lacks([Planned(ids, len(ids) - done, (len(ids) - done) * size)], view.store_key):
            raise _too_large(facts, len(ids) * size)
    if len(ids) < facts.config.min_prefix_length:
        tell_short(len(ids), facts.config.min_prefix_length)
    with progress_bar("relay_hf: prefix", len(ids), done, progress if len(ends) > 1 else False) as reached:
        for end in ends:
            prefix = _keep_prefix(call, ids[:end], pin and end == len(ids))
            reached(end)
    return prefix


def kv_of_one_token(call: GenerateCall) -> PrefixKV:
    """The KV or state of one token, which is put through the model: it shows all tensors, their dtypes and shapes."""
    run = PrefixNode(0, torch.zeros(1, dtype=torch.int64, device="cpu"), (0,))
    with _named_failure():
        ((_, (found,)),) = prefill_tree(call, [run], lambda _: [], _prefill_inputs(call.facts))
    return found


def check_keepable(facts: CallFacts, length: int) -> None:
    """Raise a RelayError that says why no prefix of `length` tokens can be kept now."""
    view = facts.view
    cache = view.default_cache()
    refused = (
        facts.findings.refusal
        or eligible_models.model_refusal(view)
        or eligibility.cache_refusal(cache)
        or keeping_refusal(view.model, view.modules)
        or code_refusal(view, facts.config)
        or eligibility.rope_refusal(view.configs, length)
    )
    if not refused and keeps_state(cache):
        refused = eligible_models.recurrent_refusal(view)
    if refused:
        raise RelayError(f"no prefix of this model can be kept: {refused}")


def _keep_prefix(call: GenerateCall, ids: Tensor, pin: bool) -> KeptPrefix:
    facts, view = call.facts, call.facts.view
    (found,), before = match(facts, [ids])
    reused = found.length
    missing = len(ids) - reused
    # Code that goes token by token, or takes a single token, leaves another state than stock's prefill.
    by_steps = view.architecture.recurrent == "steps" or missing == 1
    if missing and by_steps and keeps_state(view.default_cache()):
        reused = 0
    runs = divided([PrefixNode(0, ids, (0,))], lambda row, first: reused, [ids])
    with _named_failure():
        filled, kept = prefill_and_store(
            call, runs, lambda run: found.runs(run.start, run.end), _prefill_inputs(facts), before=before, pin=pin
        )
    prefix = kept[-1] if kept else facts.store.ending(ids, view.store_key, pin)
    if prefix is None:
        token = token_overhead(view.embedding)
        size = sum(piece.nbytes + piece.length * token for _, own in filled for piece in own)
        if size > facts.store.budget or any(each.pinned for each in facts.store.prefixes):
            raise _too_large(facts, size)
        what = "the model changed or clear() was called while the prefix was prefilled"
        raise RelayError(f"{what}; warm it again")
    return prefix


def _prefill_inputs(facts: CallFacts) -> set[str]:
    return facts.view.forward_inputs.keys() & {"position_ids", "logits_to_keep"}


@contextmanager
def _named_failure() -> Iterator[None]:
    """Within it an unforeseen error becomes a RelayError that says that a prefill raised it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RelayError) or is_out_of_memory(error):
            raise
        what = f"its prefill raised {type(error).__name__}: {error}"
        raise RelayError(f"no prefix of this model can be kept: {what}") from error


def _too_large(facts: CallFacts, size: int) -> RelayError:
    pinned = ", of which pinned prefixes take a part" if any(each.pinned for each in facts.store.prefixes) else ""
    budget = facts.store.budget
    return RelayError(
        f"the prefix takes {size} bytes, more than the store's budget of {budget}{pinned}; raise max_store_bytes"
    )
