"""The record of a demo, shown in the terminal: questions with both answers, then seconds and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from relay_hf.report import RelayReport

_SHOWN = 3  # questions with their answers; the JSON has all
_FIGURES = ("seconds", "speed-up", "KV MiB", "same tokens")


def show(record: Mapping[str, Any], out: Console) -> None:
    """Print a demo's record, as `relay-hf demo --json` has it."""
    out.print(f"{record['model']}; {record['dtype']} on {record['device']}", markup=False)
    prompts = "1 prompt" if record["rows"] == 1 else f"{record['rows']} prompts"
    out.print(f"{prompts} of up to {record['prompt_tokens']:,} tokens, up to {record['new_tokens']} new tokens each\n")
    out.print(_answers(record["answers"]))
    out.print(_figures(record["runs"]))
    out.print("model.relay.last, after the first call:")
    out.print(str(RelayReport(**record["runs"][1]["report"])), markup=False)


def _answers(answers: list[dict[str, Any]]) -> Table:
    columns = (Column("a customer writes", ratio=5), Column("stock generate()", ratio=6), Column("relay_hf", ratio=6))
    table = Table(*columns, Column("same tokens", justify="right"), box=box.SIMPLE, show_lines=True, expand=True)
    for each in answers[:_SHOWN]:
        texts = (escape(_short(each[name])) for name in ("question", "stock", "relay_hf"))
        table.add_row(*texts, _mark(each["same_tokens"]))
    if answers[_SHOWN:]:
        rest = answers[_SHOWN:]
        same = sum(each["same_tokens"] for each in rest)
        table.add_row(f"[dim]and {len(rest)} more[/]", "", "", _mark(same == len(rest)))
    return table


def _figures(runs: list[dict[str, Any]]) -> Table:
    table = Table("", *(Column(name, justify="right") for name in _FIGURES), box=box.SIMPLE)
    for run in runs:
        table.add_row(
            run["name"],
            f"{run['seconds']:.2f}",
            f"{run['speed_up']:.1f}x",
            f"{run['kv_bytes'] / 2**20:.1f}" if run["kv_bytes"] else "-",
            _mark(run["same_tokens"]),
            style="bold" if run["report"] else None,
        )
    return table


def _mark(same: bool) -> str:
    return "[green]yes[/]" if same else "[bold red]NO[/]"


def _short(text: str, most: int = 240) -> str:
    """The text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most].rstrip()} ..."
