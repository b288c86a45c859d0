"""Prefixes ahead of their first request, and what a call would do without running it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import RelayError
from ..model.architectures import architecture_of
from ..model.device import is_out_of_memory, store_key
from ..model.fingerprint.keeping import keeping_refusal
from ..model.upstream.caches import keeps_state
from ..model.vocabulary import check_prefix
from ..prefix import KeptPrefix, Planned, PrefixNode, divided
from ..prefix.store import beside_token
from . import eligibility
from .call import open_call
from .decision import match
from .prefix_prefill import fill, fill_and_keep
from .progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..cache_utils import PrefixKV
    from ..relay import Relay


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
    check_prefix(model, ids, len(ids), "text_or_ids")
    return ids


def warm(relay: Relay, ids: Tensor, pin: bool, chunk: int | None, progress: bool | None) -> KeptPrefix:
    """Prefill what is not kept of `ids` (`[P]`), `chunk` tokens at a time, and keep it; inside an open call.

    Each chunk is kept before the next one, which goes on from it: so it takes no mask, and an interrupt loses little.
    Models with recurrent layers take all at once: where their chunks begin changes stock's own output.
    """
    check_keepable(relay, len(ids))
    if keeps_state(relay.default_cache()):
        chunk = None
    done = match(relay, [ids])[0][0].length
    ends = [*range(done + (chunk or len(ids)), len(ids), chunk or len(ids)), len(ids)]
    if len(ends) > 1:
        size = of_one_token(relay).nbytes + beside_token(relay.model.get_input_embeddings())
        if relay.keeper.lacks([Planned(ids, len(ids) - done, (len(ids) - done) * size)], store_key(relay.model)):
            raise _too_large(relay, len(ids) * size)
    with progress_bar("relay_hf: prefix", len(ids), done, progress if len(ends) > 1 else False) as reached:
        for end in ends:
            prefix = _keep_prefix(relay, ids[:end], pin and end == len(ids))
            reached(end)
    return prefix


def of_one_token(relay: Relay) -> PrefixKV:
    """What the model keeps of a token, which is put through it: which tensors, of which dtypes and shapes."""
    run = PrefixNode(0, torch.zeros(1, dtype=torch.int64), (0,))
    with _named_failure():
        ((_, (found,)),) = fill(relay, [run], lambda _: [], _prefill_inputs(relay))
    return found


def _prefill_inputs(relay: Relay) -> set[str]:
    return relay.forward_inputs.keys() & {"position_ids", "logits_to_keep"}


@contextmanager
def _named_failure() -> Iterator[None]:
    """A prefill that raises something unforeseen says that it was one."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RelayError) or is_out_of_memory(error):
            raise
        what = f"its prefill raised {type(error).__name__}: {error}"
        raise RelayError(f"no prefix of this model can be kept: {what}") from error


def _too_large(relay: Relay, size: int) -> RelayError:
    pinned = ", of which pinned prefixes take a part" if any(each.pinned for each in relay.prefixes) else ""
    budget = relay.keeper.budget
    return RelayError(
        f"the prefix takes {size} bytes, more than the store's budget of {budget}{pinned}; raise max_store_bytes"
    )


def _keep_prefix(relay: Relay, ids: Tensor, pin: bool) -> KeptPrefix:
    architecture = architecture_of(relay.text_config)
    recurrent = keeps_state(relay.default_cache())
    (found,), witness = match(relay, [ids])
    reused = found.length
    missing = len(ids) - reused
    # Token by token, or with the code for a single token, its state would be another than stock's prefill leaves.
    if recurrent and missing and (architecture.recurrent == "steps" or missing == 1):
        reused = 0
    runs = divided([PrefixNode(0, ids, (0,))], lambda row, first: reused, [ids])
    with _named_failure():
        filled, kept = fill_and_keep(
            relay, runs, lambda run: found.runs(run.start, run.end), _prefill_inputs(relay), before=witness, pin=pin
        )
    prefix = kept[-1] if kept else relay.keeper.ending(ids, store_key(relay.model), pin)
    if prefix is None:
        token = beside_token(relay.model.get_input_embeddings())
        size = sum(piece.nbytes + piece.length * token for _, own in filled for piece in own)
        if size > relay.keeper.budget or any(each.pinned for each in relay.prefixes):
            raise _too_large(relay, size)
        what = "the model changed or clear() was called while the prefix was prefilled"
        raise RelayError(f"{what}; warm it again")
    return prefix


def check_keepable(relay: Relay, length: int) -> None:
    """Raise a RelayError that says why no prefix of `length` tokens can be kept now; inside an open call."""
    model, call, cache = relay.model, open_call(), relay.default_cache()
    refused = (
        relay.model_refusal
        or eligibility.model_refusal(model)
        or eligibility.attention_refusal(call.modules, call.configs)
        or eligibility.cache_refusal(cache)
        or keeping_refusal(model, call.modules)
        or eligibility.hook_refusal(call.modules, relay)
        or eligibility.rope_refusal(call.configs, length)
    )
    if not refused and keeps_state(cache):
        refused = eligibility.recurrent_refusal(architecture_of(relay.text_config), model)
    if refused:
        raise RelayError(f"no prefix of this model can be kept: {refused}")
