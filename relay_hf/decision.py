"""From a generate() call's prompts to what will be shared, and why. Runs nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import CacheLayerMixin

from . import eligibility, gate
from .architectures import Architecture, architecture_of
from .cache_utils import SharedRun, keeps_state
from .call import open_call
from .prefix import Match, Prompts, Run, divided, keeping_refusal, pruned, shared_runs, walk
from .report import RelayReport

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from .relay import Relay

_UNPROFITABLE = "policy 'auto': sharing what some of the rows start with is not expected to pay"

NO_PROMPTS = Prompts.of(torch.zeros(0, 0, dtype=torch.int64), None)


@dataclass(eq=False)
class Decision:
    """What to do with a call.

    Attributes:
        reason: why.
        prompts: the rows, on the host.
        runs: what rows share, and what is kept of them: a forest.
        matches: how much of each row is kept.
        keep: whether what is prefilled of the runs may be kept for later calls.
        keep_row: whether the single row is to be kept whole, answer and all.
    """

    reason: str
    prompts: Prompts = NO_PROMPTS
    runs: list[Run] = field(default_factory=list)
    matches: Sequence[Match] = ()
    keep: bool = False
    keep_row: bool = False

    @property
    def relays(self) -> bool:
        """Whether anything is shared, or kept."""
        return bool(self.runs or self.keep_row)

    def held(self, run: Run) -> list[SharedRun]:
        """What there is of a run that is kept."""
        return self.matches[run.rows[0]].runs(run.start, run.end)

    def report(self) -> RelayReport:
        """The decision as a report, before any byte is measured and any backend has run."""
        rows, tokens = len(self.prompts.ids), self.prompts.tokens
        if not self.relays:
            return RelayReport(False, self.reason, rows=rows, prompt_tokens_computed=tokens)
        runs = [run for _, run in walk(self.runs)]
        saved = sum((len(run.rows) - (not run.kept)) * len(run.ids) for run in runs)
        return RelayReport(
            relayed=True,
            reason=self.reason,
            rows=rows,
            prefix_length=max((run.end for run in runs), default=0),
            prefix_tokens_reused=sum(len(run.ids) for run in runs if run.kept),
            prompt_tokens_computed=tokens - saved,
            prompt_tokens_saved=saved,
            levels=levels(self.runs),
        )


def levels(runs: list[Run]) -> int:
    """Levels of sharing in a forest: groups of rows, one within the other."""
    deepest, level = 0, [(run, len(run.rows), 1) for run in runs]
    while level:
        run, rows, depth = level.pop()
        deepest = max(deepest, depth)
        for child in run.children:
            # A run that is kept in part stands as two of the same rows, and of one row there may be more kept.
            level.append((child, len(child.rows), depth + (1 < len(child.rows) < rows)))
    return deepest


def _forwards(runs: list[Run]) -> int:
    """Forwards that the runs take, at least: one for each level of what is not kept."""
    most, level = 0, [(run, 0) for run in runs]
    while level:
        run, before = level.pop()
        forwards = before + (not run.kept)
        most = max(most, forwards)
        level += [(child, forwards) for child in run.children]
    return most


def decide(
    relay: Relay, input_ids: Tensor, generation_config: GenerationConfig, inputs: dict, first: bool = True
) -> Decision:
    """Decide a call.

    Args:
        relay: the model's handle.
        input_ids: `[B, L]`, every row that the model will run.
        generation_config: as generate() resolved it.
        inputs: the forward's keyword inputs, as generate() has them.
        first: generate()'s `is_first_iteration`.

    Raises:
        TokenIdError: a token id has no embedding.
    """
    model, call, mask = relay.model, open_call(), inputs.get("attention_mask")
    cache, architecture = _stock_cache(relay, inputs), architecture_of(relay.text_config)
    refused = refusal(relay, input_ids, generation_config, inputs, first, cache)
    refused = refused or eligibility.rope_refusal(call.configs, input_ids.shape[1])
    if refused:
        return Decision(refused)
    prompts = Prompts.of(input_ids, mask)
    recurrent = keeps_state(cache)
    if recurrent:
        chunked = generation_config.prefill_chunk_size is not None
        padded = bool(prompts.start.any())
        refused = eligibility.recurrent_refusal(architecture, model, chunked, padded, prompts.holes)
    if refused:
        return Decision(refused, prompts=prompts)
    eligibility.check_vocabulary(model, prompts.ids, "input_ids")
    keep = keeping_refusal(model, call.modules) is None and relay.keeper.store.budget > 0
    positions = architecture.positions
    if positions == "given" and "position_ids" not in relay.forward_inputs:
        positions = "columns"  # BART's kin, which take what a caller gives them all the same, and leave it
    # Several runs are prefilled as one padded batch, and stand-in tensors know of one run alone.
    one_level = recurrent or architecture.parted or positions != "given"
    found = _find(relay, prompts, keep, one_level, architecture.recurrent if recurrent else None)
    new = max((generation_config.max_length or 0) - input_ids.shape[1], 1)
    if found.relays and relay.config.policy == "auto":
        _prune(relay, found, new)
    if not found.relays:
        return found
    refused = eligibility.position_refusal(
        inputs, mask, input_ids.shape[1], bool(prompts.start.any()), prompts.holes, positions
    )
    if refused is None and relay.config.policy == "auto":
        refused = _gate_refusal(relay, found, new, architecture, cache)
    return Decision(refused, prompts=prompts) if refused else found


def _gate_refusal(
    relay: Relay, found: Decision, new: int, architecture: Architecture, cache: Cache | None
) -> str | None:
    """Why sharing what was found is not expected to pay, or None. `new`: tokens to generate for a row, at most."""
    prompts, model = found.prompts, relay.model
    rows = len(prompts.ids)
    passes, layers = 1, [] if cache is None else cache.layers
    if keeps_state(cache):
        own = prompts.end - prompts.start - max((run.end for _, run in walk(found.runs)), default=0)
        passes = int(own.unique().sum()) if found.runs and architecture.recurrent == "steps" else len(own.unique())
    shape = gate.Shape(
        rows,
        new,
        tuple((len(run.ids), len(run.rows), run.kept) for _, run in walk(found.runs)),
        forwards=_forwards(found.runs),
        keeping=prompts.tokens - sum(len(run.ids) for _, run in walk(found.runs)) if found.keep_row else 0,
        passes=passes,
        own_code=architecture.parted,
    )
    attending = sum(isinstance(layer, CacheLayerMixin) for layer in layers) / max(len(layers), 1)
    return gate.refusal(shape, open_call().modules, relay.text_config, model.device, model.dtype, attending)


def refusal(
    relay: Relay,
    input_ids: Tensor,
    generation_config: GenerationConfig,
    inputs: dict,
    first: bool,
    cache: Cache | None,
) -> str | None:
    """Why a call is not served whatever its rows share, or None. Arguments as for `decide`; `cache`: stock's."""
    call = open_call()
    if relay.config.policy == "off":
        return "policy 'off'"
    return (
        relay.model_refusal
        or _backend_refusal(relay)
        or eligibility.model_refusal(relay.model, call.configs)
        or eligibility.call_refusal(input_ids, generation_config, inputs, first, cache)
        or eligibility.training_refusal(call.modules, call.configs)
        or eligibility.hook_refusal(call.modules, relay)
    )


def _backend_refusal(relay: Relay) -> str | None:
    """Why the backend that was asked for by name can't compute for this model, or None."""
    try:
        _ = relay.backend
    except RuntimeError as error:
        return str(error)
    return None


def context_of(model: PreTrainedModel) -> Hashable:
    """What a cache's KV depends on beside the model's weights: device, dtype, and autocast."""
    device = model.device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    return (device, model.dtype, autocast)


def _stock_cache(relay: Relay, inputs: dict) -> Cache | None:
    """The cache that stock would use; a plain one where only the model's own defaults ask for a static one.

    Such a default is its author's advice for speed, not the caller's wish. On other devices generate() has chosen to
    compile the forward for it by now.
    """
    cache = inputs.get(relay.cache_name)
    by_default = isinstance(cache, StaticCache) and not open_call().names_cache
    if by_default and not hasattr(cache, "_is_user_defined") and relay.model.device.type == "cpu":
        return DynamicCache(config=relay.text_config)
    return cache


def _find(relay: Relay, prompts: Prompts, keep: bool, one_level: bool, recurrent: str | None) -> Decision:
    """What the rows share, and what of it is kept.

    `one_level`: only what all rows share can be shared. `recurrent`: how recurrent layers go on from a state.
    """
    least, count = relay.config.min_prefix_length, len(prompts.ids)
    # A recurrent layer has other code for a single token than stock's prefill runs: NemotronH's differs by 1e-4.
    own = 2 if recurrent == "split" else 1
    runs = shared_runs(prompts, own)
    if one_level:
        runs = [Run(0, run.ids, run.rows) for run in runs if len(run.rows) == count]
    longest = max((run.end for _, run in walk(runs)), default=0)
    rows = [prompts.row(row, own) for row in range(count)]
    if one_level and count > 1:
        rows = [runs[0].ids if runs else prompts.ids[0, :0]] * count
    matches = match(relay, rows) if keep else [Match()] * count
    kept = [each.length for each in matches]
    if recurrent and count == 1 and matches[0].seen - kept[0] >= least:
        # Its start returned, but the states behind it are not known: they will be from now on.
        runs = [Run(0, rows[0][: matches[0].seen], (0,))]
    if recurrent == "steps" and runs and kept[0] < runs[0].end:
        kept = [0] * count  # from a kept state on it would go token by token
    runs = pruned(divided(runs, kept, rows), lambda tokens, run: tokens >= least)
    # A loop of the caller's may do anything with the cache that the row would be taken from when the call ends.
    keep_row = keep and count == 1 and prompts.tokens >= least and not open_call().own_loop
    found = Decision("", prompts, runs, matches, keep, keep_row)
    if count == 1 and open_call().own_loop and keep and not found.runs:
        found.reason = "one row, in a decoding loop of the caller's"
    elif not found.relays:
        what = f"the rows share {longest} tokens" if count > 1 else f"one row of {prompts.tokens} tokens"
        found.reason = f"{what}, fewer than min_prefix_length={least}" if keep or count > 1 else "one row, not kept"
    else:
        found.reason = _reason(found)
    return found


def _reason(found: Decision) -> str:
    count = len(found.prompts.ids)
    everyone = [run for _, run in walk(found.runs) if len(run.rows) == count]
    some = len(everyone) < sum(1 for _ in walk(found.runs))
    kept = [run.kept for run in everyone]
    if count == 1:
        return "a kept prefix" if all(kept) and kept else "a start that returned" if kept else "kept for later calls"
    if not everyone:
        return "some of the rows start alike"
    reason = "a kept prefix" if all(kept) else "the rows start alike"
    if any(kept) and not all(kept):
        reason = "a kept prefix, extended by what the rows share"
    return f"{reason}, and some go on alike" if some else reason


def _prune(relay: Relay, found: Decision, new: int) -> None:
    """Leave out the runs that are not expected to pay. `new`: tokens to generate for a row, at most."""
    model = relay.model
    known = gate.costs(open_call().modules, relay.text_config, model.device, model.dtype)
    if isinstance(known, str):
        return

    def pays(tokens: int, run: Run) -> bool:
        # What all rows share is judged with the whole call: without it the call is stock's, which copies all KV.
        whole = len(run.rows) == len(found.prompts.ids)
        return whole or gate.run_gain(tokens, run.ways, run.kept, new, *known) > 0

    found.runs = pruned(found.runs, pays)
    found.reason = _reason(found) if found.relays else _UNPROFITABLE


def match(relay: Relay, rows: Sequence[Tensor]) -> list[Match]:
    """How much of the start of each row (`[n]`) is kept."""
    embedding = relay.model.get_input_embeddings()
    return relay.keeper.match(open_call().modules, embedding, rows, context_of(relay.model))
