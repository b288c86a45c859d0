"""From a generate() call's prompts to what will be shared, and why. Runs nothing."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import CacheLayerMixin

from . import eligibility, gate
from .architectures import Architecture, architecture_of
from .cache_utils import keeps_state
from .call import open_call
from .prefix import KeptPrefix, Prompts, Run, keeping_refusal, pruned, shared_runs, walk
from .report import RelayReport

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from .relay import Relay

NO_PROMPTS = Prompts.of(torch.zeros(0, 0, dtype=torch.int64), None)


@dataclass(eq=False)
class Decision:
    """What to do with a call.

    Attributes:
        reason: why.
        length: tokens that all rows are to share; 0: none.
        prompts: the rows, on the host.
        kept: a kept prefix to start from.
        reused: how many of its tokens serve.
        keep: whether the prefix may be kept for later calls.
        runs: what some of the rows share behind it.
    """

    reason: str
    length: int = 0
    prompts: Prompts = NO_PROMPTS
    kept: KeptPrefix | None = None
    reused: int = 0
    keep: bool = False
    runs: list[Run] = field(default_factory=list)

    @property
    def relays(self) -> bool:
        """Whether anything is shared."""
        return bool(self.length or self.runs)

    def report(self) -> RelayReport:
        """The decision as a report, before any byte is measured and any backend has run."""
        rows, tokens = len(self.prompts.ids), self.prompts.tokens
        if not self.relays:
            return RelayReport(False, self.reason, rows=rows, prompt_tokens_computed=tokens)
        later = [(depth, run) for depth, run in walk(self.runs)]
        computed = tokens - rows * self.length + self.length - self.reused
        computed -= sum((len(run.rows) - 1) * len(run.ids) for _, run in later)
        return RelayReport(
            relayed=True,
            reason=self.reason,
            rows=rows,
            prefix_length=max((run.end for _, run in later), default=self.length),
            prefix_tokens_reused=self.reused,
            prompt_tokens_computed=computed,
            prompt_tokens_saved=tokens - computed,
            levels=bool(self.length) + max((depth + 1 for depth, _ in later), default=0),
        )


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
    found = _find(relay, prompts, keep, architecture.recurrent if recurrent else None)
    positions = architecture.positions
    if positions == "given" and "position_ids" not in relay.forward_inputs:
        positions = "columns"  # BART's kin, which take what a caller gives them all the same, and leave it
    new = max((generation_config.max_length or 0) - input_ids.shape[1], 1)
    # Several runs are prefilled as one padded batch, and stand-in tensors know of one run alone.
    if len(prompts.ids) > 1 and positions == "given" and not (recurrent or architecture.parted):
        _find_runs(relay, found, new)
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
        own = prompts.ids.shape[1] - found.length - prompts.start.unique()
        passes = int(own.sum()) if architecture.recurrent == "steps" else len(own)
    shape = gate.Shape(
        rows,
        found.length,
        found.reused,
        new,
        returning=rows == 1 and found.reused < found.length,
        runs=tuple((len(run.ids), len(run.rows)) for _, run in walk(found.runs)),
        levels=max((depth + 1 for depth, _ in walk(found.runs)), default=0),
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


def lookup(relay: Relay, ids: Tensor) -> tuple[KeptPrefix | None, int]:
    """The kept prefix that serves most of the start of `ids` (`[n]`), and how many tokens of it."""
    embedding = relay.model.get_input_embeddings()
    return relay.keeper.lookup(open_call().modules, embedding, ids, context_of(relay.model))


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


def _find(relay: Relay, prompts: Prompts, keep: bool, recurrent: str | None) -> Decision:
    """The prefix to share: what the rows share; for a single row, what is kept or returns from an earlier call."""
    least = relay.config.min_prefix_length
    # A recurrent layer has other code for a single token than stock's prefill runs: NemotronH's differs by 1e-4.
    shared = prompts.shared_length(own=2 if recurrent == "split" else 1)
    ids = prompts.first_row[:shared]
    kept, reused = lookup(relay, ids) if keep else (None, 0)
    single = len(prompts.ids) == 1
    length = shared
    if single:
        length = max(reused, relay.keeper.returning(ids) if keep else 0)
    # A forward for a few more tokens costs more than it saves; the rows carry them as their own.
    if reused and length - reused < least:
        length = reused
    if recurrent == "steps" and reused < length:
        kept, reused = None, 0  # from a kept state on it would go token by token
    if length < least:
        what = "nothing kept or recent starts this row" if single else f"the rows share {length} tokens"
        return Decision(f"{what}, fewer than min_prefix_length={least}" if length else what, prompts=prompts)
    if reused == length:
        reason = "a kept prefix"
    elif single:
        reason = "a start that returned, kept from now on"
    else:
        reason = "the rows start alike" if not reused else "a kept prefix, extended by what the rows share"
    return Decision(reason, length, prompts, kept if reused else None, reused, keep)


def _find_runs(relay: Relay, found: Decision, new: int) -> None:
    """Add what some of the rows share behind what all of them do. `new`: tokens to generate for a row, at most."""
    prompts, least, model = found.prompts, relay.config.min_prefix_length, relay.model
    runs = shared_runs(prompts, own=1)
    if found.length:
        (first,) = runs
        rest = Run(found.length, first.ids[found.length :], first.rows, first.children)
        runs = [rest] if len(rest.ids) else first.children
    runs = pruned(runs, lambda tokens, ways: tokens >= least)
    if runs and relay.config.policy == "auto":
        known = gate.costs(open_call().modules, relay.text_config, model.device, model.dtype)
        if isinstance(known, str):
            return
        runs = pruned(runs, lambda tokens, ways: gate.run_gain(tokens, ways, new, *known) > 0)
        if not runs and not found.length:
            found.reason = "policy 'auto': sharing what some of the rows start with is not expected to pay"
    found.runs = runs
    if runs:
        found.reason = "some of the rows start alike" if not found.length else f"{found.reason}, and some go on alike"
