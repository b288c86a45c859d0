"""Running a case: stock, then patched, pass by pass."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import relay_hf

from . import models, precision
from .calls import Results, both, prepare, turns
from .case import Case, draw
from .code import put_inside
from .compare import Difference, compare, foretold
from .options import shortened
from .rows import Batch
from .weights import changed

# What a rounding can move by more than the bound on logits: the beams that are kept, the experts that are chosen.
_DISCRETE = ("beams", "experts")


@dataclass
class Pass:
    """One call of a case: its name, whether it was relayed and why, prefix tokens that had been kept."""

    name: str
    relayed: bool
    reason: str
    reused: int = 0


@dataclass
class Outcome:
    """What came of a case.

    Attributes:
        kind: "same", "raised" (stock did, and ours the same), "near-tie", "mismatch", "left out", or "broken" (the
            fuzzer itself failed).
        detail: the mismatch, the near-tie, the error, or why the type is left out.
        error: largest difference of logits or KV, relative to their scale.
    """

    case: Case
    kind: str = "same"
    detail: str = ""
    passes: list[Pass] = field(default_factory=list)
    error: float = 0.0
    seconds: float = 0.0

    @property
    def relayed(self) -> bool:
        """Whether any pass was."""
        return any(each.relayed for each in self.passes)


def run(number: int, types: Sequence[str], dtype: str = "float64") -> Outcome:
    """Draw a case and run it; what differs is run once more with new models, as its reproducer will."""
    with precision.deprecations_raise():
        case = draw(number, types)
    outcome = run_case(case, dtype)
    if outcome.kind in ("mismatch", "near-tie"):
        models.forget()
        alone = run_case(case, dtype)
        if alone.kind != outcome.kind:
            outcome.detail += f" [run alone: {alone.kind}, so it depends on the cases before it]"
    if outcome.kind == "mismatch" and dtype == "float32" and outcome.detail.startswith(_DISCRETE):
        exact = run_case(case, "float64")
        if exact.kind == "same":
            outcome = replace(outcome, kind="near-tie", detail=f"{outcome.detail}; in float64 it is the same")
    return outcome


def run_case(case: Case, dtype: str) -> Outcome:
    """Run a case as it is."""
    outcome, began = Outcome(case), time.perf_counter()
    with precision.arithmetic(dtype):
        try:
            pair = models.pair(case.model_type, case.size, dtype)
        except models.Unavailable as error:
            outcome.kind, outcome.detail = "left out", str(error)
            return outcome
        pair.reset()
        # `precision` replaces functions.
        relay_hf.patch_model(pair.ours, relay_hf.RelayConfig(**case.relay, trust=[""]))
        pair.ours.relay.clear()
        try:
            difference = _Passes(case, pair, dtype, outcome).run()
        except Exception as error:
            difference = Difference("broken", f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    if difference is not None:
        outcome.kind, outcome.detail = difference.kind, difference.detail
    outcome.seconds = time.perf_counter() - began
    return outcome


class _Passes:
    """The passes of a case, run until one differs."""

    def __init__(self, case: Case, pair: models.Pair, dtype: str, outcome: Outcome) -> None:
        self.case, self.pair, self.dtype, self.outcome = case, pair, dtype, outcome
        self.options = dict(case.options)
        if dtype != "float64":  # to tell near-ties
            self.options.update(return_dict_in_generate=True, output_logits=True, output_scores=True)

    def run(self) -> Difference | None:
        """The first pass that differs, if any."""
        case, pair = self.case, self.pair
        with put_inside(case, pair), changed(case, pair) as change:
            first = both(case, pair, case.batch.tensors(), self.options, (None, prepare(case, pair)))
            difference = self._judge("first", case.batch, first)
            if difference is None:
                for name, results in turns(case, pair, self.options, first):
                    difference = difference or self._judge(name, None, results)
            if difference is not None:
                return difference
            change()
            second = both(case, pair, case.second.tensors(), shortened(self.options))
            return self._judge("second", case.second, second)

    def _judge(self, name: str, batch: Batch | None, results: Results) -> Difference | None:
        report = results[1].report
        if report is not None:
            self.outcome.passes.append(Pass(name, report.relayed, report.reason, report.prefix_tokens_reused))
        difference, error = compare(*results, self.case.options, batch, self.dtype, self.pair.routed)
        self.outcome.error = max(self.outcome.error, error)
        other = foretold(results[1])
        if other is not None and (difference is None or difference.kind == "raised"):
            difference = Difference("mismatch", other)
        if difference is None or difference.kind == "raised":
            return difference
        return replace(difference, detail=f"{difference.detail} ({name} pass: {report})")
