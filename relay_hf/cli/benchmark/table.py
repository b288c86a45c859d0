"""The table of a run in the terminal: a line for each contender, and the report of the patched model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from relay_hf import RelayReport

from .record import Record

_TOKENS = {True: "identical", False: "differ", None: "-"}


def in_words(rows: int, shared: Sequence[str], own: str, new: int, answers: str = "") -> str:
    """Prompts in a line, such as `16 prompts of 1,024 shared + 32 own tokens, 32 new`.

    Args:
        rows: prompts.
        shared: what they share, level by level, in words.
        own: tokens that each has of its own, in words.
        new: tokens to be generated.
        answers: how many answers each gets, in words that begin with a comma.
    """
    prompts = "1 prompt" if rows == 1 else f"{rows} prompts"
    tokens = " + ".join([*shared, f"{own} own"]) if shared else own
    return f"{prompts} of {tokens} tokens{answers}, {new} new"


def describe(workload: Mapping[str, Any]) -> str:
    """The workload of a record, in a line."""
    shared = [f"{workload['prefix']:,} shared"] if workload["prefix"] else []
    own, least = f"{workload['own']:,}", f"{workload.get('least_own', workload['own']):,}"
    return in_words(workload["rows"], shared, own if own == least else f"{least} to {own}", workload["new"])


def medians(record: Record) -> dict[str, float]:
    """Seconds of each contender."""
    return {each["contender"]: statistics.median(each["seconds"]) for each in record["contenders"]}


def table_of(record: Record, title: str, more: Mapping[str, Mapping[str, str]] | None = None) -> Table:
    """A line for each contender: median seconds, their spread, and how many times as fast as stock it is.

    Args:
        record: the record of a workload.
        title: the title over the table.
        more: the cells of further columns, by contender.
    """
    found, more = medians(record), more or {}
    columns = ("seconds", "min - max", "stock / this", *more, "tokens")
    table = Table("contender", *(Column(column, justify="right") for column in columns), title=escape(title))
    for each in record["contenders"]:
        name, seconds = each["contender"], each["seconds"]
        table.add_row(
            name,
            f"{found[name]:.3f}",
            f"{min(seconds):.3f} - {max(seconds):.3f}",
            f"{found['stock'] / found[name]:.2f}x" if "stock" in found else "-",
            *(cells[name] for cells in more.values()),
            _TOKENS[each["same_tokens"]],
            style="bold" if each["report"] else None,
        )
    return table


def show(record: Record, table: Table, same: Mapping[str, bool], out: Console) -> None:
    """Print the table of a workload, whether tokens were stock's, and the report of the patched model.

    `same`: for each contender whose tokens must be stock's, whether they were.
    """
    out.print(table)
    wrong = [name for name, held in same.items() if not held]
    if same:
        verdict = f"[bold red]differ: {', '.join(wrong)}[/]" if wrong else "identical"
        out.print(f"tokens of {', '.join(same)}: {verdict}")
    for each in record["contenders"]:
        if each["report"]:
            out.print(f"{each['contender']}: {RelayReport(**each['report'])!r}", markup=False)
    out.print()
