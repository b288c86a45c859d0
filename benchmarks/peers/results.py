"""The record of a run, its table in the terminal, and what there is to choose from."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping

from rich.console import Console
from rich.table import Column, Table

from benchmarks.cpu.words import describe
from benchmarks.cpu.workloads import NamedWorkload
from relay_hf.cli.benchmark.record import Record
from relay_hf.cli.console import print_json

from .contenders import ABSENT, CONTENDERS, MODES
from .turns import Found
from .workloads import WORKLOADS


def workload_record(name: str, workload: NamedWorkload, found: Found) -> Record:
    """All rounds of a workload, what its engines say of themselves, and why others are absent."""
    timed = [dataclasses.asdict(each) | {"median": statistics.median(each.seconds)} for each in found.timed]
    described = {"name": name, "workload": dataclasses.asdict(workload)}
    return described | {"timed": timed, "engines": found.about, "absent": found.absent}


def contenders_record() -> Record:
    """Each contender in words, and who can't be had."""
    kept = ("label", "numbers", "prefix", "settings")
    described = {name: {field: getattr(each, field) for field in kept} for name, each in CONTENDERS.items()}
    return {"contenders": described, "absent": ABSENT}


def seconds_of(record: Record) -> dict[tuple[str, str], float]:
    """Median seconds by contender and mode."""
    return {(each["contender"], each["mode"]): each["median"] for each in record["timed"]}


def equal_tokens(record: Record, contender: str) -> str:
    """How many tokens of a contender are stock's in float32, in words: `all`, a count, or nothing."""
    entries = [each for each in record["timed"] if each["contender"] == contender]
    equal, compared = (sum(each[key] for each in entries) for key in ("equal", "compared"))
    if not compared:
        return ""
    return "all" if equal == compared else f"{equal:,} of {compared:,}"


def all_agree(record: Record) -> bool:
    """Whether all contenders that must have stock's tokens had them."""
    return all(
        each["equal"] == each["compared"] for each in record["timed"] if CONTENDERS[each["contender"]].must_agree
    )


def show(record: Record, out: Console) -> None:
    """The table of a workload, and who is absent from it."""
    found = seconds_of(record)
    title = f"{record['name']}: {describe(record['workload'])}; seconds"
    right = (Column(text.partition(":")[0], justify="right") for text in [*MODES.values(), "tokens as stock's"])
    table = Table("contender", *right, title=title)
    for name in dict.fromkeys(contender for contender, _ in found):
        cells = (f"{found[name, mode]:.3f}" if (name, mode) in found else "" for mode in MODES)
        table.add_row(CONTENDERS[name].label, *cells, equal_tokens(record, name))
    out.print(table)
    for name, reason in record["absent"].items():
        out.print(f"not there: {CONTENDERS[name].label}: {reason}", markup=False)
    out.print()


def list_all(out: Console, as_json: bool) -> None:
    """Workloads and contenders, with a line each, and who can't be had."""
    described = {name: describe(dataclasses.asdict(workload)) for name, workload in WORKLOADS.items()}
    if as_json:
        print_json({"workloads": described} | contenders_record())
    out.print(_two_columns("workload", described))
    out.print(_two_columns("contender", {name: f"{each.label}: {each.prefix}" for name, each in CONTENDERS.items()}))
    out.print(_two_columns("not there", ABSENT))


def _two_columns(head: str, texts: Mapping[str, str]) -> Table:
    table = Table(head, "")
    for name, text in texts.items():
        table.add_row(name, text)
    return table
