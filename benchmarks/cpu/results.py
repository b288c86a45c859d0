"""Results of named workloads: read back, shown, drawn, and what there is to choose from."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from relay_hf.cli.benchmark import table
from relay_hf.cli.benchmark.record import Record, same_as_stock
from relay_hf.cli.console import about, print_json

from . import plot
from .contenders import CONTENDERS
from .words import describe
from .workloads import WORKLOADS

_RENAMED = {"floor": "token-once"}  # what older results call a contender, and its name now


def check_plot(path: Path | None) -> None:
    """Refuse what could not be drawn, before anything is measured."""
    if path is None:
        return
    if path.suffix not in plot.FORMATS:
        raise typer.BadParameter(f"its name must end in .png or .svg; got {path.name}.", param_hint="'--plot'")
    if importlib.util.find_spec("matplotlib") is None:
        advice = 'plots need matplotlib, which is not installed: pip install "relay_hf[bench]".'
        raise typer.BadParameter(advice, param_hint="'--plot'")


def read(source: Path) -> Record:
    """What an earlier run wrote."""
    advice = "Give a file that python -m benchmarks.cpu --output wrote."
    with about("--from", advice, OSError, ValueError):
        content = json.loads(source.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not content.keys() >= {"hardware", "workloads"}:
            raise ValueError(f"{source} holds no result of a workload")
        for each in itertools.chain.from_iterable(record["contenders"] for record in content["workloads"]):
            each["contender"] = _RENAMED.get(each["contender"], each["contender"])
    return content


def show(record: Record, out: Console) -> None:
    """The table of a workload, with the ratio to token-once, and what is to be said of the tokens and the relay."""
    found, more = table.medians(record), {}
    if "token-once" in found:
        once = found["token-once"]
        more["this / once"] = {name: f"{seconds / once:.2f}x" for name, seconds in found.items()}
    title = f"{record['name']}: {describe(record['workload'])}"
    table.show(record, table.table_of(record, title, more), same_as_stock(record, CONTENDERS), out)


def all_same(content: Record) -> bool:
    """Whether all contenders whose tokens must be stock's had them."""
    return all(all(same_as_stock(record, CONTENDERS).values()) for record in content["workloads"])


def draw(content: Record, path: Path | None) -> None:
    """A picture of a result, where one is asked for."""
    if path is not None:
        with about("--plot", "Give a result with workloads, and a file that you may write to.", OSError, ValueError):
            plot.draw(content, path)


def list_all(out: Console, as_json: bool) -> None:
    """Workloads and contenders, with a line each."""
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
