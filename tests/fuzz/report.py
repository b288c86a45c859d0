"""The summary of a run, and a case written out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, fields

from rich.table import Table

from .run import Outcome

FAILURES = ("mismatch", "broken")
_FALLBACK = "a relayed prefill raised"


@dataclass
class Summary:
    """Counts over outcomes."""

    dtype: str
    kinds: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    relayed_types: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    raised: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    relayed: int = 0
    reused: int = 0
    error: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        name = outcome.case.model_type
        self.kinds[outcome.kind] += 1
        if outcome.kind == "left out":
            self.left_out[name] = outcome.detail
            return
        self.types[name] += 1
        self.error = max(self.error, outcome.error)
        self.relayed += outcome.relayed
        self.relayed_types[name] += outcome.relayed
        self.reused += any(each.reused for each in outcome.passes)
        for each in outcome.passes:
            self.passes["relayed" if each.relayed else _general(each.reason)] += 1
            if each.reason.startswith(_FALLBACK):
                self.fallbacks.append(finding(outcome, self.dtype, each.reason))
        if outcome.kind == "raised":
            self.raised[_general(outcome.detail.splitlines()[0])] += 1
        elif outcome.kind != "same":
            self.findings.append(finding(outcome, self.dtype))

    @property
    def failed(self) -> bool:
        """Whether anything was found that must not be."""
        return any(self.kinds[kind] for kind in FAILURES)

    @property
    def cases(self) -> int:
        """Cases that ran."""
        return sum(self.kinds.values()) - self.kinds["left out"]

    def table(self, seconds: float) -> Table:
        """All counts."""
        table = Table(title=f"stock against patched, {self.dtype}", show_header=False)
        cases = max(self.cases, 1)
        table.add_row("cases", f"{self.cases} in {seconds:.0f} s, {self.cases / seconds:.1f} a second")
        table.add_row("relayed", f"{self.relayed} ({self.relayed / cases:.0%}); with a kept prefix {self.reused}")
        for kind in ("mismatch", "near-tie", "broken"):
            table.add_row(f"[red]{kind}[/]" if self.kinds[kind] else kind, str(self.kinds[kind]))
        table.add_row("largest error", f"{self.error:.1e} of the scale of logits, scores and KV")
        table.add_row("types", f"{len(self.types)} ran, {len(+self.relayed_types)} were relayed")
        never = sorted(set(self.types) - set(+self.relayed_types))
        table.add_row("never relayed", ", ".join(never) or "none")
        table.add_row("left out", "\n".join(f"{name}: {why}" for name, why in sorted(self.left_out.items())) or "none")
        table.add_row("calls", "\n".join(f"{count:6} {what}" for what, count in self.passes.most_common()))
        table.add_row("both raised", "\n".join(f"{count:6} {what}" for what, count in self.raised.most_common()) or "0")
        table.add_row("fallbacks", "\n".join(self.fallbacks) or "none")
        return table


def finding(outcome: Outcome, dtype: str, detail: str | None = None) -> str:
    """One line: the reproducer, and what it shows."""
    what = outcome.detail if detail is None else detail
    return f"{outcome.kind}: {outcome.case.reproducer(dtype)}  # {what.splitlines()[0]}"


def describe(outcome: Outcome, overrides: dict | None = None) -> str:
    """A case in full, and what came of it."""
    lines = [f"{each.name} = {getattr(outcome.case, each.name)!r}" for each in fields(outcome.case)]
    if overrides is not None:
        lines.append(f"overrides = {overrides!r}")
    lines += [
        f"pass {each.name!r}: {'relayed' if each.relayed else 'untouched'}, {each.reason}" for each in outcome.passes
    ]
    return "\n".join([*lines, f"=> {outcome.kind} {outcome.detail} (error {outcome.error:.1e})"])


def _general(reason: str) -> str:
    """A reason without its numbers and lists."""
    return re.sub(r"\[[^\]]*\]", "[...]", re.sub(r"\d+", "N", reason))[:150]
