"""Finds the runs that a call's rows share, and the kept prefixes that rows start with. It looks at tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..model.fingerprint import ModelFingerprint
from ..prefix import Match, PrefixNode, Prompts, divided, pruned, shared_runs, walk
from ..prefix.snapshot import Snapshot
from ..reasons import Reason, Refusal
from .decision import Decision, levels_of
from .facts import CallFacts


class SharingRules(NamedTuple):
    """Rules for the sharing of a call that do not depend on its tokens.

    Attributes:
        unkept: why no prefix of the model is kept between calls, or None.
        one_level: only runs that all rows share may be shared.
        recurrent: how recurrent layers go on from a state (see `architectures.py`); None if there are none.
        reuse: whether to start from kept prefixes.
    """

    unkept: Refusal | None
    one_level: bool
    recurrent: str | None
    reuse: bool = True


def find(facts: CallFacts, prompts: Prompts, rules: SharingRules) -> Decision:
    """The runs that rows share, and which of them are kept."""
    least, count = facts.config.min_prefix_length, len(prompts.ids)
    # A recurrent layer runs other code for a single token than for stock's prefill: NemotronH's differs by 1e-4.
    own = 2 if rules.recurrent == "split" else 1
    runs = shared_runs(prompts, own)
    if rules.one_level:
        runs = [PrefixNode(0, run.ids, run.rows) for run in runs if len(run.rows) == count]
    longest = max((run.end for _, run in walk(runs)), default=0)
    rows = prompts.rows(own)
    if rules.one_level and count > 1:
        rows = [runs[0].ids if runs else prompts.ids[0, :0]] * count
    keep = rules.unkept is None and prompts.longest >= least
    matches: Sequence[Match] = [Match()] * count
    snapshot = None
    if keep and rules.reuse:
        matches, snapshot = facts.source.match(rows, facts.view.store_key, facts.view.modules, not facts.dry)
    if rules.recurrent and count == 1 and matches[0].seen - matches[0].length >= least:
        # An earlier call had the same start, but its state there was not kept. Now it is prefilled as a run, and kept.
        runs = [PrefixNode(0, rows[0][: matches[0].seen], (0,))]

    def kept(row: int, first: int) -> int:
        length = matches[row].within(first)
        by_steps = rules.recurrent == "steps" and runs and length < runs[0].end
        return 0 if by_steps else length  # from a kept state on the rest of the run would go token by token

    def may_be_a_run(tokens: int, run: PrefixNode) -> bool:
        behind_a_state = not run.kept and tokens < run.end
        return tokens >= (max(least, own) if behind_a_state else least)

    runs = pruned(divided(runs, kept, rows), may_be_a_run)
    # A loop of the caller may change the cache, from which the row would be taken when the call ends.
    keep_row = keep and count == 1 and prompts.tokens >= least and not facts.arguments.own_loop
    found = Decision(None, prompts, runs, matches, snapshot, None, keep, keep_row, unkept=rules.unkept)
    found.alike, found.levels = longest, levels_of(runs)
    if not found.relays:
        found.refused = _nothing_to_share(found, longest, least, rules.unkept)
    return found


def _nothing_to_share(found: Decision, longest: int, least: int, unkept: Refusal | None) -> Refusal:
    """Why nothing is shared by rows whose longest common start has `longest` tokens."""
    prompts = found.prompts
    if len(prompts.ids) > 1:
        return Reason.SHORT_PREFIX.of(tokens=longest, least=least)
    if prompts.tokens < least:
        return Reason.SHORT_ROW.of(tokens=prompts.tokens, least=least)
    if unkept is None:
        return Reason.ROW_IN_OWN_LOOP.of()
    reason = Reason.ROW_WITHOUT_BUDGET if unkept.source == "call" else Reason.ROW_NOT_KEPT
    return reason.of(why=unkept)


def match(facts: CallFacts, rows: Sequence[Tensor]) -> tuple[list[Match], ModelFingerprint | None]:
    """How much of the start of each row (`[n]`) is kept, and the model's fingerprint now (None: nothing is kept)."""
    matches, snapshot = facts.source.match(rows, facts.view.store_key, facts.view.modules)
    fingerprint = None if snapshot is None else look(facts, snapshot)
    return ([Match()] * len(rows) if fingerprint is None else matches), fingerprint


def look(facts: CallFacts, snapshot: Snapshot) -> ModelFingerprint | None:
    """The model's fingerprint now, if it equals the snapshot's; else None, and all kept prefixes are dropped.

    A dry call drops none.
    """
    return facts.source.look(snapshot, facts.view.modules, facts.view.embedding, not facts.dry)
