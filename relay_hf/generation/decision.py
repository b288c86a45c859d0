"""The decision about a generate() call: the runs that its rows share, which of them are kept already, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..cache_utils import PrefixKV
from ..model.fingerprint import ModelFingerprint
from ..prefix import Match, PrefixNode, Prompts, walk
from ..prefix.snapshot import Snapshot
from ..reasons import Refusal
from ..report import RelayReport

NO_PROMPTS = Prompts.of(torch.zeros(0, 0, dtype=torch.int64, device="cpu"), None)


@dataclass(eq=False)
class Decision:
    """The decision about a call.

    Attributes:
        refused: why the call is left to stock; None: it is relayed, if there is anything to share or to keep.
        prompts: the rows, on the host.
        runs: the runs that rows share, and the kept runs that they start with: a forest.
        matches: for each row, how much of its start is kept.
        snapshot: the state of the model that the matched prefixes belong to; None if nothing is kept.
        fingerprint: the model when it was compared with the snapshot; None if it was not compared.
        keep: whether runs that are prefilled may be kept for later calls.
        keep_row: whether the single row is to be kept whole, with its answer.
        unkept: why no run is kept for later calls, or not all of them; None if nothing forbids it.
        gain: seconds that policy "auto" expects relaying to save, at least; None if it was not asked, or does not know.
    """

    refused: Refusal | None = None
    prompts: Prompts = NO_PROMPTS
    runs: list[PrefixNode] = field(default_factory=list)
    matches: Sequence[Match] = ()
    snapshot: Snapshot | None = None
    fingerprint: ModelFingerprint | None = None
    keep: bool = False
    keep_row: bool = False
    unkept: Refusal | None = None
    gain: float | None = None

    @property
    def relays(self) -> bool:
        """Whether the call is relayed."""
        return self.refused is None and bool(self.runs or self.keep_row)

    @property
    def uses_kept(self) -> bool:
        """Whether the call starts from a kept prefix."""
        return self.relays and any(run.kept for _, run in walk(self.runs))

    @property
    def reason(self) -> str:
        """Why the call is relayed, or why it is not."""
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
        """The KV of a kept run."""
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
                # A run that is kept in part stands as two runs of the same rows. A run of one row is not shared.
                todo.append((child, level + (1 < len(child.rows) < len(run.rows))))
        return deepest

    @property
    def forwards(self) -> int:
        """The least number of forwards for the runs: one for each level with runs that are not kept."""
        most, todo = 0, [(run, 0) for run in self.runs]
        while todo:
            run, before = todo.pop()
            forwards = before + (not run.kept)
            most = max(most, forwards)
            todo += [(child, forwards) for child in run.children]
        return most

    def report(self) -> RelayReport:
        """The decision as a report, before bytes are counted and a backend has run."""
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
            unkept_reason=str(self.unkept or ""),
        )
