"""The summary of a run."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from rich.table import Table

from .case import KINDS
from .run import Outcome

OUTCOMES = ("refused", "same", "as forged", "finding")


@dataclass
class Summary:
    """Counts over outcomes."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        self.outcomes[outcome.kind] += 1
        for kind in set(outcome.case.kinds):
            self.kinds[kind, outcome.kind] += 1
        if outcome.kind == "refused":
            self.errors[general(outcome.detail)] += 1
        if outcome.kind == "finding":
            line = " ".join(outcome.detail.split())[:300]
            self.findings.append(f"finding: {outcome.case.reproducer}  # {', '.join(outcome.case.kinds)}: {line}")

    def table(self, seconds: float) -> Table:
        """All counts: of cases with a change of each kind, and of errors."""
        count = sum(self.outcomes.values())
        table = Table(title=f"files of strangers: {count} cases in {seconds:.0f} s")
        for name in ("change", *OUTCOMES):
            table.add_column(name, justify="left" if name == "change" else "right")
        for kind in KINDS:
            table.add_row(kind, *(str(self.kinds[kind, outcome]) for outcome in OUTCOMES))
        table.add_section()
        table.add_row("all", *(str(self.outcomes[outcome]) for outcome in OUTCOMES))
        return table


def general(detail: str) -> str:
    """An error without what is of its case alone."""
    return re.sub(r"'.*'|\"[^\"]*\"|\(.*\)|\[.*\]|`[^`]*`|-?\d+", "...", detail)[:100]
