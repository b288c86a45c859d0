"""The decision about a generate() call: the runs that its rows share, which of them are kept already, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..cache_utils import PrefixKV
from ..model.fingerprint import ModelFingerprint
from ..prefix import Match, PrefixNode, Prompts, walk
from ..prefix.snapshot import Snapshot
from ..reasons import SOME_GO_ON, Reason, ReasonText, Refusal
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
        alike: tokens of the longest start that two rows have in common, shared or not; None if they were not compared.
        levels: levels of the runs that are long enough to be shared, whether they pay or not; None if not compared.
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
    alike: int | None = None
    levels: int | None = None

    def refuse(self, refused: Refusal) -> Decision:
        """The decision to leave the call to stock, with what is known of it."""
        return Decision(refused, self.prompts, gain=self.gain, alike=self.alike, levels=self.levels)

    @property
    def relays(self) -> bool:
        """Whether the call is relayed."""
        return self.refused is None and bool(self.runs or self.keep_row)

    @property
    def uses_kept(self) -> bool:
        """Whether the call starts from a kept prefix."""
        return self.relays and any(run.kept for _, run in walk(self.runs))

    @property
    def reason(self) -> ReasonText:
        """Why the call is relayed, or why it is not."""
        if self.refused is not None:
            return self.refused
        count, runs = len(self.prompts.ids), [run for _, run in walk(self.runs)]
        kept = [run.kept for run in runs if len(run.rows) == count]  # of what all rows share
        if count == 1:
            reason = Reason.ROW_KEPT if not kept else Reason.KEPT_PREFIX if all(kept) else Reason.RETURNED_START
            return reason.why(more="")
        if not kept:
            return Reason.SOME_ROWS_ALIKE.why()
        reason = Reason.KEPT_PREFIX if all(kept) else Reason.ROWS_ALIKE
        if any(kept) and not all(kept):
            reason = Reason.KEPT_PREFIX_EXTENDED
        return reason.why(more="" if len(kept) == len(runs) else SOME_GO_ON)

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
        known = self.prompts is not NO_PROMPTS
        rows, tokens = (len(self.prompts.ids), self.prompts.tokens) if known else (None, None)
        if self.refused is not None:
            return RelayReport.of(
                self.refused,
                rows=rows,
                prompt_tokens_computed=tokens,
                prefix_length=self.alike,
                levels=self.levels,
                expected_saving_seconds=self.gain,
            )
        runs = [run for _, run in walk(self.runs)]
        saved = sum((len(run.rows) - (not run.kept)) * len(run.ids) for run in runs)
        return RelayReport.of(
            self.reason,
            rows=rows,
            prefix_length=max((run.end for run in runs), default=0),
            prefix_tokens_reused=sum(len(run.ids) for run in runs if run.kept),
            prompt_tokens_computed=None if tokens is None else tokens - saved,
            prompt_tokens_saved=saved,
            levels=levels_of(self.runs),
            unkept_reason=str(self.unkept or ""),
            unkept_code=None if self.unkept is None else self.unkept.code,
            expected_saving_seconds=self.gain,
        )


def levels_of(runs: list[PrefixNode]) -> int:
    """Levels of sharing in a forest: groups of rows, one within the other."""
    deepest, todo = 0, [(run, 1) for run in runs]
    while todo:
        run, level = todo.pop()
        deepest = max(deepest, level)
        for child in run.children:
            # A run that is kept in part stands as two runs of the same rows. A run of one row is not shared.
            todo.append((child, level + (1 < len(child.rows) < len(run.rows))))
    return deepest
