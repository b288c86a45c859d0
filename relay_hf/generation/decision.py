"""What is to be done with a generate() call: what its rows share, what of that is kept, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..cache_utils import PrefixKV
from ..model.fingerprint import ModelFingerprint
from ..prefix import Match, PrefixNode, Prompts, walk
from ..prefix.store import Snapshot
from ..reasons import Refusal
from ..report import RelayReport

NO_PROMPTS = Prompts.of(torch.zeros(0, 0, dtype=torch.int64), None)


@dataclass(eq=False)
class Decision:
    """What to do with a call.

    Attributes:
        refused: why nothing is done; None: it is to be relayed, if there is anything to share or to keep.
        prompts: the rows, on the host.
        runs: what rows share, and what is kept of them: a forest.
        matches: how much of each row is kept.
        snapshot: the model that these are kept of, as it was; None where nothing was kept.
        fingerprint: the model when it was compared with that; None where nobody has looked.
        keep: whether what is prefilled of the runs may be kept for later calls.
        keep_row: whether the single row is to be kept whole, answer and all.
        gain: seconds that policy "auto" expects relaying to save, at least; None where nobody asked, or it isn't known.
    """

    refused: Refusal | None = None
    prompts: Prompts = NO_PROMPTS
    runs: list[PrefixNode] = field(default_factory=list)
    matches: Sequence[Match] = ()
    snapshot: Snapshot | None = None
    fingerprint: ModelFingerprint | None = None
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
