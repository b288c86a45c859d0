"""From a generate() call's prompts to what will be shared, and why. Runs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from ..model.architectures import Architecture, architecture_of
from ..model.device import device_of
from ..model.fingerprint.keeping import keeping_refusal
from ..model.upstream.caches import attending, keeps_state, was_looked_at
from ..model.upstream.models import new_tokens
from ..model.upstream.names import takes_cache
from ..model.vocabulary import check_vocabulary
from ..ops import resolve_backend
from ..prefix import PrefixNode, Prompts, pruned, walk
from ..reasons import Reason, Refusal
from . import cost_model, eligibility
from .call import open_call
from .decision import Decision, find, look

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from ..relay import Relay


def decide(
    relay: Relay,
    input_ids: Tensor,
    generation_config: GenerationConfig,
    inputs: dict,
    first: bool = True,
    device: torch.device | None = None,
) -> Decision:
    """Decide a call.

    Args:
        relay: the model's handle.
        input_ids: `[B, L]`, every row that the model will run.
        generation_config: as generate() resolved it.
        inputs: the forward's keyword inputs, as generate() has them.
        first: generate()'s `is_first_iteration`.
        device: where the call would run; None: where the model is.

    Raises:
        TokenIdError: a token id has no embedding.
    """
    model, call, mask = relay.model, open_call(), inputs.get("attention_mask")
    cache, architecture = _stock_cache(relay, inputs), architecture_of(relay.text_config)
    refused = refusal(relay, input_ids, generation_config, inputs, first, cache, device)
    refused = refused or eligibility.rope_refusal(call.configs, input_ids.shape[1])
    if refused:
        return Decision(refused)
    # All that is read of the ids and the mask is read here: on a GPU each look waits for it.
    prompts = Prompts.of(input_ids, mask)
    refused = eligibility.padding_refusal(prompts.attended)
    if keeps_state(cache) and refused is None:
        chunked = generation_config.prefill_chunk_size is not None
        padded = bool(prompts.start.any())
        refused = eligibility.recurrent_refusal(architecture, model, chunked, padded, prompts.holes)
    if refused:
        return Decision(refused, prompts=prompts)
    check_vocabulary(model, prompts.ids, "input_ids")
    new = new_tokens(generation_config, input_ids.shape[1])
    weighed = (relay, prompts, inputs.get("position_ids"), mask, new, architecture, cache, device or device_of(model))
    found = _weigh(*weighed)
    # Where nothing that is kept is to be used, nobody looks at the model: `benchmarks.overhead` shows what that takes.
    if found.uses_kept and found.kept is not None:
        found.witness = look(relay, found.kept)
        if found.witness is None:
            return _weigh(*weighed, reuse=False)
    return found


def _weigh(
    relay: Relay,
    prompts: Prompts,
    position_ids: Tensor | None,
    mask: Tensor | None,
    new: int,
    architecture: Architecture,
    cache: Cache | None,
    device: torch.device,
    reuse: bool = True,
) -> Decision:
    """What the rows share, and whether it is to be shared. `new`: tokens to generate for a row, at most."""
    model = relay.model
    unkept = None
    if relay.keeper.budget == 0:
        unkept = Reason.ROW_WITHOUT_BUDGET.of()
    elif prompts.longest >= relay.config.min_prefix_length:
        unkept = keeping_refusal(model, open_call().modules)
    positions = architecture.positions
    if positions == "given" and "position_ids" not in relay.forward_inputs:
        positions = "columns"  # BART's kin, which take what a caller gives them all the same, and leave it
    # Stand-in tensors know of one run alone; so do models that count columns, where runs begin at several; and a
    # recurrent layer that goes on token by token would do so in every level but the first.
    recurrent = architecture.recurrent if keeps_state(cache) else None
    one_level = recurrent == "steps" or architecture.parted or positions == "columns"
    found = find(relay, prompts, unkept, one_level, recurrent, reuse)
    if found.relays and relay.config.policy == "auto":
        _prune(relay, found, new, device)
    if not found.relays:
        return found
    refused = eligibility.position_refusal(model, open_call(), position_ids, mask, prompts, positions)
    if refused is None and relay.config.policy == "auto":
        refused = _gate_refusal(relay, found, new, architecture, cache, device)
    return Decision(refused, prompts=prompts) if refused else found


def _gate_refusal(
    relay: Relay, found: Decision, new: int, architecture: Architecture, cache: Cache | None, device: torch.device
) -> Refusal | None:
    """Why sharing what was found is not expected to pay, or None. `new`: tokens to generate for a row, at most."""
    prompts, model = found.prompts, relay.model
    rows = len(prompts.ids)
    passes = 1
    if keeps_state(cache):
        own = (prompts.end - prompts.start - torch.tensor(found.shared_lengths)).unique()
        passes = int(own.sum()) if found.runs and architecture.recurrent == "steps" else len(own)
    shape = cost_model.Shape(
        rows,
        new,
        tuple((len(run.ids), len(run.rows), run.kept) for _, run in walk(found.runs)),
        forwards=found.forwards,
        keeping=prompts.tokens - sum(len(run.ids) for _, run in walk(found.runs)) if found.keep_row else 0,
        passes=passes,
        own_code=architecture.parted,
        replayed=relay.graphs.expected(new, device) and not keeps_state(cache) and not architecture.parted,
    )
    verdict = cost_model.judge(shape, open_call().modules, relay.text_config, device, model.dtype, attending(cache))
    found.gain = verdict.gain
    return verdict.refused


def refusal(
    relay: Relay,
    input_ids: Tensor,
    generation_config: GenerationConfig,
    inputs: dict,
    first: bool,
    cache: Cache | None,
    device: torch.device | None = None,
) -> Refusal | None:
    """Why a call is not served whatever its rows share, or None. Arguments as for `decide`; `cache`: stock's."""
    call = open_call()
    if relay.config.policy == "off":
        return Reason.POLICY_OFF.of()
    return (
        relay.model_refusal
        or _backend_refusal(relay, device)
        or eligibility.model_refusal(relay.model)
        or eligibility.attention_refusal(call.modules, call.configs)
        or eligibility.call_refusal(relay.model, call, input_ids, generation_config, inputs, first, cache)
        or eligibility.training_refusal(call.modules, call.configs)
        or eligibility.hook_refusal(call.modules, relay)
    )


def _backend_refusal(relay: Relay, device: torch.device | None) -> Refusal | None:
    """Why the backend that was asked for by name can't compute for this model, or None."""
    try:
        _ = relay.backend if device is None else resolve_backend(relay.config.backend, device, relay.model.dtype)
    except RuntimeError as error:
        return Reason.UNFIT_CALL.of(why=error)
    return None


def _stock_cache(relay: Relay, inputs: dict) -> Cache | None:
    """The cache that stock would use; a plain one where only the model's own defaults ask for a static one.

    Such a default is its author's advice for speed, not the caller's wish. On other devices generate() has chosen to
    compile the forward for it by now.
    """
    # generate() makes one for models that take none, too.
    cache = inputs.get(relay.cache_name) if takes_cache(relay.forward_inputs) else None
    by_default = isinstance(cache, StaticCache) and not open_call().names_cache
    if by_default and not was_looked_at(cache) and device_of(relay.model).type == "cpu":
        return DynamicCache(config=relay.text_config)
    return cache


def _prune(relay: Relay, found: Decision, new: int, device: torch.device) -> None:
    """Leave out the runs that are not expected to pay. `new`: tokens to generate for a row, at most."""
    known = cost_model.costs(open_call().modules, relay.text_config, device, relay.model.dtype)
    if isinstance(known, Refusal):
        return

    def pays(tokens: int, run: PrefixNode) -> bool:
        # What all rows share is judged with the whole call: without it the call is stock's, which copies all KV.
        whole = len(run.rows) == len(found.prompts.ids)
        return (
            whole
            or cost_model.run_gain(tokens, run.ways, run.kept, new, *known, relay.graphs.expected(new, device)) > 0
        )

    found.runs = pruned(found.runs, pays)
    if not found.relays:
        found.refused = Reason.RUNS_COST_MORE.of()
