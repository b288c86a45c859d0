"""Results of `relay-hf bench`: read, shown, written, drawn."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from .console import about, print_json

if TYPE_CHECKING:
    from relay_hf.bench.report import Record


def check_files(to: Path | None, plot: Path | None) -> None:
    """Refuse what could not be written or drawn, before anything is measured."""
    for argument, path in (("--output", to), ("--plot", plot)):
        if path is not None:
            with about(argument, "Give a file in a folder that you may write to.", OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
    if plot is None:
        return
    if plot.suffix not in (".png", ".svg"):
        raise typer.BadParameter(f"its name must end in .png or .svg; got {plot.name}.", param_hint="'--plot'")
    if importlib.util.find_spec("matplotlib") is None:
        advice = 'plots need matplotlib, which is not installed: pip install "relay_hf[bench]".'
        raise typer.BadParameter(advice, param_hint="'--plot'")


def read(source: Path) -> Record:
    """What an earlier run wrote."""
    advice = "Give a file that relay-hf bench --output wrote."
    with about("--from", advice, OSError, ValueError):
        content = json.loads(source.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not content.keys() >= {"hardware", "workloads"}:
            raise ValueError(f"{source} holds no result of a workload")
    return content


def show(record: Record, out: Console) -> None:
    """The table of a workload, whether tokens were stock's, and what the patched model reported."""
    from relay_hf import RelayReport
    from relay_hf.bench.report import differing, is_exact, workload_table

    out.print(workload_table(record))
    entries = record["contenders"]
    compared = [each["contender"] for each in entries if is_exact(each) and each["same_tokens"] is not None]
    wrong = differing(record)
    if compared:
        verdict = f"[bold red]differ: {', '.join(wrong)}[/]" if wrong else "identical"
        out.print(f"tokens of {', '.join(compared)}: {verdict}")
    for each in entries:
        if each["report"]:
            out.print(f"{each['contender']}: {RelayReport(**each['report'])}", markup=False)
    out.print()


def write(content: Record, as_json: bool, to: Path | None, plot: Path | None) -> None:
    """A result as JSON on standard output, as JSON in a file, and drawn: what is asked for."""
    from relay_hf.bench.plot import draw
    from relay_hf.bench.report import write_json

    if as_json:
        print_json(content)
    if to is not None:
        with about("--output", "Give a file that you may write to.", OSError):
            write_json(to, content)
    if plot is not None:
        with about("--plot", "Give a result with workloads, and a file that you may write to.", OSError, ValueError):
            draw(content, plot)


def list_all(out: Console, as_json: bool) -> None:
    """Workloads and contenders, with a line each."""
    from relay_hf.bench.contenders import CONTENDERS
    from relay_hf.bench.report import describe
    from relay_hf.bench.workloads import WORKLOADS

    described = {name: describe(dataclasses.asdict(workload)) for name, workload in WORKLOADS.items()}
    texts = {name: str(each.prepare.__doc__).strip().splitlines()[0].rstrip(".") for name, each in CONTENDERS.items()}
    if as_json:
        print_json({"workloads": described, "contenders": texts})
    workloads = Table("workload", "what it stands for", "prompts and tokens")
    for name, text in described.items():
        workloads.add_row(name, WORKLOADS[name].about, text)
    who = Table("contender", "what it runs")
    for name, text in texts.items():
        who.add_row(name, text)
    out.print(workloads)
    out.print(who)
