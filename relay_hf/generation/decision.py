"""What the rows of a call share, what of it is kept, and what is to be kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cache_utils import PrefixKV
from ..model.device import store_key
from ..model.fingerprint.fingerprint import ModelFingerprint
from ..prefix import Match, PrefixNode, Prompts, divided, pruned, shared_runs, walk
from ..prefix.store import Snapshot
from ..reasons import Reason, Refusal
from ..report import RelayReport
from .call import open_call

if TYPE_CHECKING:
    from ..relay import Relay

NO_PROMPTS = Prompts.of(torch.zeros(0, 0, dtype=torch.int64), None)


@dataclass(eq=False)
class Decision:
    """What to do with a call.

    Attributes:
        refused: why nothing is done; None: it is to be relayed, if there is anything to share or to keep.
        prompts: the rows, on the host.
        runs: what rows share, and what is kept of them: a forest.
        matches: how much of each row is kept.
        kept: what these are kept of; None where nothing was kept.
        witness: the model when it was held to that; None where nobody has looked.
        keep: whether what is prefilled of the runs may be kept for later calls.
        keep_row: whether the single row is to be kept whole, answer and all.
        gain: seconds that policy "auto" expects relaying to save, at least; None where nobody asked, or it isn't known.
    """

    refused: Refusal | None = None
    prompts: Prompts = NO_PROMPTS
    runs: list[PrefixNode] = field(default_factory=list)
    matches: Sequence[Match] = ()
    kept: Snapshot | None = None
    witness: ModelFingerprint | None = None
    keep: bool = False
    keep_row: bool = False
    gain: float | None = None

    @property
    def relays(self) -> bool:
        """Whether the call is relayed."""
        return self.refused is None and bool(self.runs or self.keep_row)

    @property
    def uses_kept(self) -> bool:
        """Whether it goes on from anything that is kept."""
        return self.relays and any(run.kept for _, run in walk(self.runs))

    @property
    def reason(self) -> str:
        """Why it is, or why it isn't."""
        if self.refused is not None:
            return self.refused
        count, runs = len(self.prompts.ids), [run for _, run in walk(self.runs)]
        kept = [run.kept for run in runs if len(run.rows) == count]  # of what all rows share
        if count == 1:
            return "kept for later calls" if not kept else "a kept prefix" if all(kept) else "a start that returned"
        if not kept:
            return "some of the rows start alike"
        reason = "a kept prefix" if all(kept) else "the rows start alike"
        if any(kept) and not all(kept):
            reason = "a kept prefix, extended by what the rows share"
        return reason if len(kept) == len(runs) else f"{reason}, and some go on alike"

    def held(self, run: PrefixNode) -> list[PrefixKV]:
        """What there is of a run that is kept."""
        return self.matches[run.rows[0]].runs(run.start, run.end)

    @property
    def shared_lengths(self) -> tuple[int, ...]:
        """Tokens of each row that are in runs."""
        lengths = [0] * len(self.prompts.ids)
        for _, run in walk(self.runs):
            for row in run.rows:
                lengths[row] = max(lengths[row], run.end)
        return tuple(lengths)

    @property
    def levels(self) -> int:
        """Levels of sharing: groups of rows, one within the other."""
        deepest, todo = 0, [(run, 1) for run in self.runs]
        while todo:
            run, level = todo.pop()
            deepest = max(deepest, level)
            for child in run.children:
                # A run that is kept in part stands as two of the same rows, and of one row there may be more kept.
                todo.append((child, level + (1 < len(child.rows) < len(run.rows))))
        return deepest

    @property
    def forwards(self) -> int:
        """Forwards that the runs take, at least: one for each level of what is not kept."""
        most, todo = 0, [(run, 0) for run in self.runs]
        while todo:
            run, before = todo.pop()
            forwards = before + (not run.kept)
            most = max(most, forwards)
            todo += [(child, forwards) for child in run.children]
        return most

    def report(self) -> RelayReport:
        """The decision as a report, before any byte is measured and any backend has run."""
        rows, tokens = len(self.prompts.ids), self.prompts.tokens
        if self.refused is not None:
            return RelayReport.untouched(self.refused, rows=rows, prompt_tokens_computed=tokens)
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
            levels=self.levels,
        )


def find(
    relay: Relay,
    prompts: Prompts,
    unkept: Refusal | None,
    one_level: bool,
    recurrent: str | None,
    reuse: bool = True,
) -> Decision:
    """What the rows share, and what of it is kept, going by the tokens alone.

    Args:
        relay: the model's handle.
        prompts: the rows.
        unkept: why no prefix of the model is kept between calls, or None.
        one_level: only what all rows share can be shared.
        recurrent: how recurrent layers go on from a state (see `architectures.py`); None where there are none.
        reuse: whether to go on from what is kept.
    """
    least, count = relay.config.min_prefix_length, len(prompts.ids)
    # A recurrent layer has other code for a single token than stock's prefill runs: NemotronH's differs by 1e-4.
    own = 2 if recurrent == "split" else 1
    runs = shared_runs(prompts, own)
    if one_level:
        runs = [PrefixNode(0, run.ids, run.rows) for run in runs if len(run.rows) == count]
    longest = max((run.end for _, run in walk(runs)), default=0)
    rows = prompts.rows(own)
    if one_level and count > 1:
        rows = [runs[0].ids if runs else prompts.ids[0, :0]] * count
    keep = unkept is None and prompts.longest >= least
    matches, kept_of = [Match()] * count, None
    if keep and reuse:
        matches, kept_of = relay.keeper.match(rows, store_key(relay.model), open_call().modules)
    if recurrent and count == 1 and matches[0].seen - matches[0].length >= least:
        # Its start returned, but the states behind it are not known: they will be from now on.
        runs = [PrefixNode(0, rows[0][: matches[0].seen], (0,))]

    def kept(row: int, first: int) -> int:
        length = matches[row].within(first)
        by_steps = recurrent == "steps" and runs and length < runs[0].end
        return 0 if by_steps else length  # from a kept state on they would go token by token

    def may_be_a_run(tokens: int, run: PrefixNode) -> bool:
        behind_a_state = not run.kept and tokens < run.end
        return tokens >= (max(least, own) if behind_a_state else least)

    runs = pruned(divided(runs, kept, rows), may_be_a_run)
    # A loop of the caller's may do anything with the cache that the row would be taken from when the call ends.
    stocks_loop = not open_call().own_loop
    keep_row = keep and count == 1 and prompts.tokens >= least and stocks_loop
    found = Decision(None, prompts, runs, matches, kept_of, None, keep, keep_row)
    if not found.relays:
        found.refused = _nothing_to_share(found, longest, least, unkept)
    return found


def _nothing_to_share(found: Decision, longest: int, least: int, unkept: Refusal | None) -> Refusal:
    """Why rows that start alike for `longest` tokens at most share nothing."""
    prompts = found.prompts
    if len(prompts.ids) > 1:
        return Reason.SHORT_PREFIX.of(tokens=longest, least=least)
    if prompts.tokens < least:
        return Reason.SHORT_ROW.of(tokens=prompts.tokens, least=least)
    if unkept is None:
        return Reason.ROW_IN_OWN_LOOP.of()
    return unkept if unkept.source == "call" else Reason.ROW_NOT_KEPT.of(why=unkept)


def match(relay: Relay, rows: Sequence[Tensor]) -> tuple[list[Match], ModelFingerprint | None]:
    """How much of the start of each row (`[n]`) is kept, and the model at that moment (None: nothing is kept)."""
    matches, kept = relay.keeper.match(rows, store_key(relay.model), open_call().modules)
    witness = None if kept is None else look(relay, kept)
    return ([Match()] * len(rows) if witness is None else matches), witness


def look(relay: Relay, kept: Snapshot) -> ModelFingerprint | None:
    """The model now, if it is the one that something is kept of; None if not, and then nothing is kept any more."""
    return relay.keeper.look(kept, open_call().modules, relay.model.get_input_embeddings())
