"""A forest of runs as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .tree import PrefixNode, walk


def outline(runs: list[PrefixNode]) -> str:
    """A line for each run, indented under the run before it: tokens, rows, and whether it is kept."""
    lines = []
    for depth, run in walk(runs):
        rows = f"row {run.rows[0]}" if len(run.rows) == 1 else f"{len(run.rows)} rows ({_ranges(run.rows)})"
        lines.append(f"{'  ' * depth}{_tokens(len(run.ids))}, {rows}{', kept from before' if run.kept else ''}")
    return "\n".join(lines)


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _ranges(rows: Iterable[int]) -> str:
    """Ascending numbers as text; numbers that follow each other are written as first-last."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in _runs_of(rows))


def _runs_of(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = -2
    for row in rows:
        if row > last + 1:
            if last >= 0:
                yield first, last
            first = row
        last = row
    if last >= 0:
        yield first, last
