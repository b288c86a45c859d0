"""Decides what a generate() call will share, or why it shares nothing, from its prompts. Nothing is computed here."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from transformers import Cache, DynamicCache, StaticCache

from ..model.fingerprint import keeping_refusal
from ..model.upstream.caches import attending, keeps_state, was_looked_at
from ..model.upstream.models import new_tokens, takes_positions
from ..model.upstream.names import takes_cache
from ..model.vocabulary import check_vocabulary
from ..prefix import PrefixNode, Prompts, pruned, walk
from ..reasons import Reason, Refusal
from . import cost_model, eligibility, eligible_models
from .decision import Decision
from .eligible_code import code_refusal
from .facts import CallFacts, PrefillInputs
from .sharing import SharingRules, find, look


class _Weighed(NamedTuple):
    """A call that can be served exactly, while it is weighed.

    Attributes:
        facts, asked: facts and prefill inputs of the call.
        prompts: the call's rows.
        cache: the cache that stock would use.
        device: the device that the call would run on.
    """

    facts: CallFacts
    asked: PrefillInputs
    prompts: Prompts
    cache: Cache | None
    device: torch.device

    @property
    def new(self) -> int:
        """Tokens to generate for a row, at most."""
        return new_tokens(self.asked.generation_config, self.asked.input_ids.shape[1])

    @property
    def recurrent(self) -> str | None:
        """How recurrent layers go on from a state; None where there are none."""
        return self.facts.view.architecture.recurrent if keeps_state(self.cache) else None


def decide(facts: CallFacts, asked: PrefillInputs, device: torch.device | None = None) -> Decision:
    """Decide what to do with a call.

    Args:
        facts: the facts of the call.
        asked: the inputs of its prefill.
        device: the device that the call would run on; None: the model's.

    Raises:
        TokenIdError: a token id has no embedding.
    """
    view, input_ids = facts.view, asked.input_ids
    cache = _stock_cache(facts, asked, device or view.device)
    refused = refusal(facts, asked, cache, device)
    refused = refused or eligibility.rope_refusal(view.configs, input_ids.shape[1])
    if refused:
        return Decision(refused)
    # Ids and mask are read here, and nowhere else, because on a GPU each read waits for the device.
    prompts = Prompts.of(input_ids, asked.inputs.get("attention_mask"))
    refused = eligibility.padding_refusal(prompts.attended)
    if keeps_state(cache) and refused is None:
        refused = eligible_models.recurrent_refusal(view)
        refused = refused or eligibility.state_refusal(view.modules, prompts, asked.chunk is not None)
    if refused:
        return Decision(refused, prompts=prompts)
    check_vocabulary(view.model, prompts.ids, "input_ids")
    weighed = _Weighed(facts, asked, prompts, cache, device or view.device)
    found = _weigh(weighed)
    # The model is compared only if a kept prefix is about to be used: `benchmarks.overhead` measures how long it takes.
    if found.uses_kept and found.snapshot is not None:
        found.fingerprint = look(facts, found.snapshot)
        if found.fingerprint is None:
            return _weigh(weighed, reuse=False)
    return found


def refusal(
    facts: CallFacts, asked: PrefillInputs, cache: Cache | None, device: torch.device | None = None
) -> Refusal | None:
    """Why a call is not served, whatever its rows share, or None. `cache`: stock's; the others are as for `decide`."""
    if facts.config.policy == "off":
        return Reason.POLICY_OFF.of()
    return (
        facts.findings.refusal
        or _backend_refusal(facts, device)
        or eligible_models.model_refusal(facts.view)
        or eligibility.call_refusal(facts, asked, cache)
        or eligible_models.training_refusal(facts.view)
        or code_refusal(facts.view, facts.config)
    )


def _backend_refusal(facts: CallFacts, device: torch.device | None) -> Refusal | None:
    """Why the backend that was asked for by name can't compute for this model, or None."""
    try:
        facts.view.backend(facts.config.backend, device)
    except RuntimeError as error:
        return Reason.UNFIT_CALL.of(why=error)
    return None


def _stock_cache(facts: CallFacts, asked: PrefillInputs, device: torch.device) -> Cache | None:
    """The cache that stock would use; a plain one where only the model's own defaults ask for a static one.

    Such a default is the model author's advice for speed, not the caller's wish. It is overridden on a CPU alone: on
    other devices generate() has already chosen to compile the forward for the static cache.
    """
    view = facts.view
    # generate() makes a cache also for models that take none.
    cache = asked.inputs.get(view.cache_name) if takes_cache(view.forward_inputs) else None
    by_default = isinstance(cache, StaticCache) and not facts.arguments.names_cache
    if by_default and not was_looked_at(cache) and device.type == "cpu":
        return DynamicCache(config=view.text_config)
    return cache


def _weigh(weighed: _Weighed, reuse: bool = True) -> Decision:
    """The runs that rows share, and whether to share them. `reuse`: whether to start from kept prefixes."""
    facts, prompts, recurrent = weighed.facts, weighed.prompts, weighed.recurrent
    view, automatic = facts.view, facts.config.policy == "auto"
    unkept = None
    if facts.store.budget == 0:
        unkept = Reason.NO_BUDGET.of()
    elif prompts.longest >= facts.config.min_prefix_length:
        unkept = keeping_refusal(view.model, view.modules)
    positions = _positions(weighed)
    # A split tensor can hold one shared prefix only. A model that counts columns can't have prefixes that begin in
    # different columns. A recurrent layer that continues token by token would be slow in each level but the first.
    one_level = recurrent == "steps" or view.architecture.own_attention or positions in ("columns", "left out")
    found = find(facts, prompts, SharingRules(unkept, one_level, recurrent, reuse))
    if found.relays and automatic:
        _prune(found, weighed)
    if not found.relays:
        return found
    refused = eligibility.position_refusal(facts, weighed.asked, prompts, positions)
    if refused is None and automatic:
        refused = _cost_refusal(found, weighed)
    return found.refuse(refused) if refused else found


def _positions(weighed: _Weighed) -> str:
    """Where the model takes positions from in this call: see `Architecture.positions`.

    "left out": they are given to the model, which leaves them out when it prepares a forward's inputs.
    """
    facts, view, asked = weighed.facts, weighed.facts.view, weighed.asked
    known = view.architecture.positions
    if known != "given":
        return known
    if "position_ids" not in view.forward_inputs:
        return "columns"  # BART and its relatives: they accept position_ids, and ignore them
    if asked.inputs.get("position_ids") is None:
        return known
    inputs = {**asked.inputs, view.cache_name: weighed.cache}
    left_out = facts.findings.leaves_out_positions or not takes_positions(view.model, asked.input_ids, inputs)
    return "left out" if left_out else known


def _prune(found: Decision, weighed: _Weighed) -> None:
    """Leave out the prefixes that are not expected to pay."""
    facts, view, new, device = weighed.facts, weighed.facts.view, weighed.new, weighed.device
    linears = partial(facts.linears.speedup_of, len(found.prompts.ids))
    known = cost_model.costs(view.modules, view.text_config, device, view.model.dtype, linears=linears)
    if isinstance(known, Refusal):
        return
    replayed = facts.graphs.expected(new, device)
    gains = []

    def pays(tokens: int, run: PrefixNode) -> bool:
        # A run that all rows share is judged with the whole call: without it the call is stock's, which copies all KV.
        if len(run.rows) == len(found.prompts.ids):
            return True
        gains.append(cost_model.run_gain(tokens, run.ways, run.kept, new, *known, replayed))
        return gains[-1] > 0

    found.runs = pruned(found.runs, pays)
    if not found.relays:
        found.refused, found.gain = Reason.RUNS_COST_MORE.of(), max(gains)


def _cost_refusal(found: Decision, weighed: _Weighed) -> Refusal | None:
    """Why sharing the runs is not expected to pay, or None."""
    view, prompts, cache = weighed.facts.view, found.prompts, weighed.cache
    own_code, states = view.architecture.own_attention, keeps_state(cache)
    passes = 1
    if states:
        own = (prompts.end - prompts.start - torch.tensor(found.shared_lengths, device="cpu")).unique()
        passes = int(own.sum()) if found.runs and weighed.recurrent == "steps" else len(own)
    shape = cost_model.Shape(
        len(prompts.ids),
        weighed.new,
        tuple((len(run.ids), len(run.rows), run.kept) for _, run in walk(found.runs)),
        forwards=found.forwards,
        keeping=prompts.tokens - sum(len(run.ids) for _, run in walk(found.runs)) if found.keep_row else 0,
        passes=passes,
        own_code=own_code,
        computed=prompts.tokens - sum((len(run.rows) - (not run.kept)) * len(run.ids) for _, run in walk(found.runs)),
        replayed=weighed.facts.graphs.expected(weighed.new, weighed.device) and not states and not own_code,
    )
    linears = partial(weighed.facts.linears.speedup_of, len(prompts.ids))
    verdict = cost_model.judge(
        shape, view.modules, view.text_config, weighed.device, view.model.dtype, attending(cache), linears
    )
    found.gain = verdict.gain
    return verdict.refused
