"""The prefill hook: from a generate() call to a RelayCache that holds its prompt."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attention.forward import own_columns
from ..cache_utils import RelayCache, RowLayout
from ..errors import RECHOSEN, RelayError, TokenIdError, UnfitForwardError, UnfitModelError
from ..graphs import own_copy
from ..model.architectures import architecture_of
from ..model.device import ComputeContext, device_of, free_bytes, is_out_of_memory, on_host
from ..model.upstream.behaviour import CHUNKS_GO_ON
from ..model.upstream.models import new_tokens
from ..reasons import Reason, Refusal
from ..report import RelayReport
from .call import current_call, open_call
from .decide import decide, refusal
from .decision import Decision
from .eligibility import padding_refusal
from .finish import CONTINUED, guarded, tell
from .forward_rows import run, run_gapless
from .prefix_prefill import Filled, fill, fill_and_keep
from .row_recorder import RowRecorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import GenerationConfig

    from ..cache_utils import PrefixKV
    from ..relay import Relay

logger = logging.getLogger("relay_hf")

# The share of the memory left that may be reserved for tokens to come. A call that says max_new_tokens=4096 for 32 rows
# of a 7B model in bf16 speaks of 64 GiB, and may stop early: it should not fail for want of them, nor starve others.
_SHARE_RESERVED = 0.25


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
        return stock(*arguments, is_first_iteration)
    given = model_kwargs.get(relay.cache_name)
    if isinstance(given, RelayCache) and given.is_filled:
        call.report = _continue(relay, given, *arguments, is_first_iteration)
        call.cache = given if call.report.relayed else None
        outputs = stock(*arguments, is_first_iteration)
        _prefilled(relay, input_ids, generation_config)
        return outputs
    unfit = unforeseen = lacking = False
    try:
        decision = decide(relay, input_ids, generation_config, model_kwargs, is_first_iteration)
        relay.keeper.touch(decision.matches)
        if decision.relays:
            outputs = _relayed(relay, decision, *arguments)
            _prefilled(relay, input_ids, generation_config)
            model_kwargs[relay.cache_name] = call.cache  # last: where anything fails they are stock's inputs still
            return outputs
    except TokenIdError:
        raise
    except Exception as error:
        # The error itself is let go: its frames hold what was allocated, and stock may need that memory.
        lacking = is_out_of_memory(error)
        if call.rechosen and not lacking:
            error = RelayError(RECHOSEN)  # whatever came of it, the model is not to blame
        unfit = isinstance(error, UnfitModelError)
        unforeseen = not (lacking or isinstance(error, RelayError))
        if isinstance(given, RelayCache):
            given.reset()  # it was empty, and may hold what layers stored before the failure
        failure = _failure(error, lacking)
        decision = Decision(failure)
        if lacking:
            logger.warning("relay_hf: the call goes on as stock: %s", failure)
        with guarded("the reason why this call goes on as stock could not be logged"):
            tell(relay, failure, failure.source)
    finally:
        call.capture = None
    call.cache = call.transcript = None
    if lacking:
        relay.free_memory()
    call.report = _counted(decision.report(), input_ids, model_kwargs)
    if isinstance(given, RelayCache):
        model_kwargs[relay.cache_name] = call.stand_in_for(given)
    outputs = stock(*arguments, is_first_iteration)
    # Where stock fails too, the caller sees stock's own error, and the model is not to blame.
    if unfit:
        relay.model_refusal = decision.refused
    elif unforeseen:
        relay.unexplained += 1
        if relay.unexplained > 1:  # once may be the moment's fault, twice is the model's
            relay.model_refusal = decision.refused
    return outputs


def _prefilled(relay: Relay, input_ids: Tensor, generation_config: GenerationConfig) -> None:
    """Note that what follows are decode steps."""
    call = open_call()
    call.masks_known = not call.own_loop
    if call.cache is not None:
        steps = max((generation_config.max_length or 0) - input_ids.shape[1] - 1, 0)  # one token is the prefill's
        ahead = (generation_config.num_beams or 1) == 1  # beams are reordered before they are fed
        call.stepper = relay.graphs.stepper(call, call.cache, steps, ahead)


def _failure(error: Exception, lacking: bool) -> Refusal:
    """What a relayed prefill has raised, as the reason why its call is left to stock."""
    if isinstance(error, RelayError):
        models = isinstance(error, (UnfitModelError, UnfitForwardError))
        reason = Reason.UNFIT_MODEL if models else Reason.UNFIT_CALL
        return reason.of(why=error)
    reason = Reason.OUT_OF_MEMORY if lacking else Reason.PREFILL_RAISED
    return reason.of(error=type(error).__name__, message=str(error).partition("\n")[0])  # torch.compile's are pages


def _relayed(
    relay: Relay, decision: Decision, input_ids: Tensor, generation_config: GenerationConfig, inputs: dict[str, Any]
) -> Any:
    call, prompts = open_call(), decision.prompts
    chunk = generation_config.prefill_chunk_size
    cache, shared = lay_out(relay, decision, input_ids, generation_config, inputs)
    call.cache = cache
    call.report = decision.report()
    transcript = None
    if decision.keep_row:
        steps_alike = architecture_of(relay.text_config).steps_alike
        goes_on = steps_alike and not prompts.holes and not call.callers_code
        shared_length = decision.shared_lengths[0]
        transcript = RowRecorder(relay, cache, prompts.row(0), shared_length, goes_on, decision.witness)
        call.capture = transcript.expanded
    if cache.state_layers:  # filled group by group
        outputs = run_gapless(relay, input_ids, inputs, cache, shared, chunk)
        call.cache = cache
    else:
        outputs = run(relay, input_ids, inputs, cache, cache.rows.offset, chunk)
    call.transcript = transcript
    if transcript is not None and transcript.ends_with_prompt:
        relay.keep_row(call)
    return outputs


def lay_out(
    relay: Relay, decision: Decision, input_ids: Tensor, generation_config: GenerationConfig, inputs: dict[str, Any]
) -> tuple[RelayCache, list[tuple[tuple[int, ...], PrefixKV]]]:
    """The cache that the rows' own tokens are to go through the model with, and what is shared in it, with its rows.

    What is not kept of that is prefilled. Arguments as for `decide`.
    """
    given, prompts = inputs.get(relay.cache_name), decision.prompts
    cache = given if isinstance(given, RelayCache) else RelayCache(relay.text_config, like=given)
    filled = _fill(relay, decision, inputs, generation_config.prefill_chunk_size)
    lengths = decision.shared_lengths
    ends = [start + length for start, length in zip(prompts.start.tolist(), lengths, strict=True)]
    offset = min(ends)
    own_start = [end - offset for end in ends]
    rows = RowLayout(
        offset=offset,
        shared_length=lengths,
        own_start=torch.tensor(own_start) if any(own_start) else None,
        reserve=input_ids.shape[1] - offset + new_tokens(generation_config, input_ids.shape[1]),
        spare=_spare(relay, cache),
    )
    shared = [(each.rows, piece) for each, own in filled for piece in own]
    cache.share(shared, rows, len(prompts.ids), ComputeContext.of(relay.model))
    rows.holes = own_columns(cache, prompts.attended)  # all of it on the host, and only then to the device
    rows.holes = None if rows.holes is None else rows.holes.to(input_ids.device)
    rows.own_start = None if rows.own_start is None else rows.own_start.to(device_of(relay.model))
    return cache, shared


def _spare(relay: Relay, cache: RelayCache) -> int:
    """Bytes that a layer of the cache may take for tokens to come."""
    return int(_SHARE_RESERVED * free_bytes(device_of(relay.model))) // max(len(cache.kv_layers), 1)


def _fill(relay: Relay, decision: Decision, inputs: dict[str, Any], chunk: int | None) -> Filled:
    """What the rows share: from the store, from the model, or both."""
    given = {name for name, value in inputs.items() if value is not None}
    if decision.keep:
        return fill_and_keep(relay, decision.runs, decision.held, given, chunk, decision.witness)[0]
    return fill(relay, decision.runs, decision.held, given, chunk)


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
    if not cache.kv_layers:  # nothing in it says how many columns it has seen
        inputs[relay.cache_name] = open_call().stand_in_for(cache)
        return RelayReport.untouched(Reason.RETURNED_OF_STATES.of(), rows=len(input_ids))
    past, mask = cache.get_seq_length(), inputs.get("attention_mask")
    attended = None if mask is None else torch.from_numpy(on_host(mask))
    refused = refusal(relay, input_ids, generation_config, inputs, first, cache) or padding_refusal(attended)
    if refused is None and cache.context not in (None, ComputeContext.of(relay.model)):
        refused = Reason.CACHE_ELSEWHERE.of()
    if generation_config.prefill_chunk_size is not None and not CHUNKS_GO_ON:
        refused = Reason.CHUNKS_ON_CACHE.of()
    if refused is None and not cache.is_shared:
        # Nothing is gained; and where the call that filled it was not relayed, the model is not known to be fit.
        refused = Reason.CACHE_UNSHARED.of()
    if refused is None and attended is not None and attended.shape[1] <= past:
        # What stock then feeds, it hides in part: the mask is taken to be of the first columns.
        refused = Reason.CACHE_LONGER.of()
    try:
        holes = own_columns(cache, attended)
        cache.rows.holes = None if holes is None else holes.to(input_ids.device)
    except RelayError as error:
        refused = refused or Reason.UNFIT_CALL.of(why=error)
    columns = max(input_ids.shape[1] - past, 0)
    computed = len(input_ids) * columns if attended is None else int(attended.numpy()[:, past:].sum())
    if refused is not None:
        inputs[relay.cache_name] = open_call().stand_in_for(cache)
        report = RelayReport.untouched(refused, rows=len(input_ids), prompt_tokens_computed=computed)
        report.reason += CONTINUED
        return report
    if cache.rows.own_start is not None and cache.rows.own_start.is_inference():
        cache.rows.own_start = own_copy(cache.rows.own_start)  # it would be one for good
    cache.rows.reserve = max((generation_config.max_length or 0) - cache.rows.offset, 0)
    cache.rows.spare = _spare(relay, cache)
    return RelayReport(
        relayed=True,
        reason="a returned cache, continued",
        rows=len(input_ids),
        prefix_length=max(cache.rows.shared_lengths),
        prompt_tokens_computed=computed,
        levels=cache.levels,
    )
