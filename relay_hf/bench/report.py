"""What is printed and what is written of a workload: a table, and a record for JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from .contenders import CONTENDERS
from .environment import environment
from .measure import Measurement
from .workloads import Workload

Record = dict[str, Any]
_TOKENS = {True: "identical", False: "differ", None: "-"}


def workload_record(name: str, workload: Workload, measurements: list[Measurement]) -> Record:
    """All rounds of a workload, for JSON."""
    contenders = [asdict(measurement) | {"median": measurement.median} for measurement in measurements]
    return {"name": name, "workload": asdict(workload), "contenders": contenders}


def result(**content: Any) -> Record:
    """What is written of a run: versions and hardware, then `content`."""
    return environment() | content


def write_json(path: Path, content: Record) -> None:
    """`content` in a file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def workload_table(record: Record) -> Table:
    """One row a contender: median seconds, their spread, and the ratios to stock and to the floor."""
    medians = {each["contender"]: statistics.median(each["seconds"]) for each in record["contenders"]}
    columns = ("seconds", "min - max", "stock / this", "this / floor", "tokens")
    title = escape(f"{record['name']}: {describe(record['workload'])}")
    table = Table("contender", *(Column(column, justify="right") for column in columns), title=title)
    for each in record["contenders"]:
        name, seconds = each["contender"], each["seconds"]
        table.add_row(
            name,
            f"{medians[name]:.3f}",
            f"{min(seconds):.3f} - {max(seconds):.3f}",
            f"{medians['stock'] / medians[name]:.2f}x" if "stock" in medians else "-",
            f"{medians[name] / medians['floor']:.2f}x" if "floor" in medians else "-",
            _TOKENS[each["same_tokens"]],
            style="bold" if CONTENDERS[name].relays else None,
        )
    return table


def describe(workload: Mapping[str, Any]) -> str:
    """A workload, as its record has it, in a line."""
    rows, own = workload["rows"], workload["own"]
    levels = [(workload["prefix"], 1), *workload.get("later", ())]
    parts = []
    for tokens, groups in levels:
        if rows == groups:  # what a single prompt starts with is shared by its samples or beams
            own += tokens
        elif tokens:
            parts.append(f"{tokens:,} shared" + (f" by {rows // groups}" if groups > 1 else ""))
    prompts = "1 prompt" if rows == 1 else f"{rows} prompts"
    text = f"{prompts} of {' + '.join([*parts, f'{own:,} own'] if parts else [f'{own:,}'])} tokens"
    options = workload["options"]
    for name, each in (("num_return_sequences", "samples"), ("num_beams", "beams")):
        text += f", {options[name]} {each} each" if name in options else ""
    model = f", {workload['model']['name']}" if "name" in workload["model"] else ""
    return f"{text}, {workload['new']} new{model}"


def differing(record: Record) -> list[str]:
    """The contenders whose tokens must be stock's and were not."""
    return [each["contender"] for each in record["contenders"] if is_exact(each) and each["same_tokens"] is False]


def is_exact(entry: Record) -> bool:
    """Whether a contender's tokens must be stock's."""
    return CONTENDERS[entry["contender"]].tokens == "exact"
