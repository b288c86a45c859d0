"""One run: sections in their order, each until its share of the time is over, and the summary."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from . import baselines, ceilings, e2e_bytes, e2e_cells, e2e_contenders, e2e_verdicts, plots, tables, verdicts, workload
from .context import Context
from .machine import ROOT, chip_name, device_of, file_name, identity
from .sections import SECTIONS, Attempts
from .store import Record, Store
from .workers import Lost, Workers

OUT_OF_TIME = "out of time"


def run(arguments: argparse.Namespace) -> int:
    """Everything that the command line asks for; 1 if something was wrong or failed to run."""
    device = device_of(arguments.dry_run)
    console = Console(width=None if sys.stdout.isatty() else 160)
    results = Path(tempfile.gettempdir()) if arguments.dry_run else ROOT / "benchmarks" / "results"
    described = {"workload": workload.TEXT, "baselines": baselines.TEXT, "floor": workload.FLOOR}
    described["e2e"] = {"workloads": e2e_cells.TEXT, "contenders": e2e_contenders.TEXT, "floor": e2e_bytes.FLOOR}
    content = {"dry_run": arguments.dry_run, **identity(device), **described}
    store = Store(arguments.out or results / file_name(device), content, arguments.fresh)
    taken_up = ", taken up again" if store.resumed else ""
    console.print(f"{chip_name(device)}, commit {content['commit'][:12]}, into {store.path}{taken_up}")

    context = Context(arguments.dry_run)
    context.contenders = arguments.contenders
    workers = Workers(0 if arguments.dry_run else arguments.workers, make_attempts, arguments.dry_run)
    names = [
        name for name in SECTIONS if name in arguments.sections or (name == "ceilings" and _needed(arguments, store))
    ]
    shares = sum(SECTIONS[name].share for name in names)
    deadline = time.monotonic()
    try:
        for name in names:
            # What a section leaves of its share goes to those after it.
            deadline += 60 * arguments.minutes * SECTIONS[name].share / shares
            run_section(name, context, store, workers, deadline, console.print, arguments.cells)
    finally:
        workers.stop()
    return summarize(store, console)


def run_section(
    name: str,
    context: Context,
    store: Store,
    workers: Workers,
    deadline: float,
    tell: Callable[[str], None],
    chosen: re.Pattern[str] | None = None,
) -> None:
    """Run the cells that the store does not have, until `deadline` (of `time.monotonic`); `chosen`: by their keys."""
    start, section = time.monotonic(), SECTIONS[name]
    store.section(name)["left_out"].clear()
    keys = [
        key
        for key, cell in section.cells(context.dry_run).items()
        if not section.done(context, cell, store.cells(name).get(key))
        and (chosen is None or name == "ceilings" or chosen.search(key))  # the ceilings are for the others
    ]

    def keep(key: str, record: dict) -> None:
        if "left_out" in record:
            store.leave_out(name, [key], record["left_out"])
        else:
            store.put(name, key, record)
        waiting.discard(key)

    waiting = set(keys)
    if section.parallel:
        alone = [(name, key) for key in keys if key in section.alone]
        together = [(name, key) for key in keys if key not in section.alone]
        for tasks, at_once in ((together, None), (alone, 1)):
            for (_, key), record in workers.run(tasks, deadline, at_once):
                keep(key, record)
    else:
        if _has_ceilings(store, context.dry_run):
            context.ceilings = ceilings.read(store.cells("ceilings"))
        done = store.cells(name).keys()
        if keys and (ahead := [(name, key, True) for key in section.ahead(context.dry_run) if key not in done]):
            for (_, key, _), record in workers.run(ahead, start + (deadline - start) / 2):
                context.ahead[key] = record
        workers.stop()  # their memory is wanted
        attempt = Attempts(context)
        for key in keys:
            if time.monotonic() < deadline:
                context.save, context.before = partial(store.put, name, key), store.cells(name).get(key)
                context.deadline = deadline
                keep(key, attempt(name, key))
        context.release()
    store.leave_out(name, [key for key in keys if key in waiting], OUT_OF_TIME)
    seconds = time.monotonic() - start
    store.section(name)["seconds"] += seconds
    store.write()
    counts = f"{len(keys) - len(store.section(name)['left_out'])} cells run, {len(store.cells(name))} in the file"
    tell(f"{name}: {counts}, {len(store.section(name)['left_out'])} left out, {seconds:.0f} s")


def make_attempts(dry_run: bool) -> Callable[..., Record]:
    """What a worker runs cells with: where its device is broken it runs no more, for another has one that is not."""
    attempts = Attempts(Context(dry_run))

    def attempt(*task: Any) -> Record:
        if attempts.context.broken_by is not None:
            raise Lost
        return attempts(*task)

    return attempt


def summarize(store: Store, console: Console) -> int:
    """Print the tables and the verdicts, and write them; 1 if something was wrong or failed to run."""
    sections = store.content["sections"]
    checks, figures = verdicts.checks(sections), [*verdicts.figures(sections), *e2e_verdicts.figures(sections)]
    if store.content["dry_run"]:
        figures = [dataclasses.replace(verdict, met=None) for verdict in figures]
    found = [*checks, *figures]
    store.content["verdicts"] = [dataclasses.asdict(verdict) for verdict in found]
    store.write()
    for line in _plots(store):
        console.print(line)
    for table in tables.summary(store.content, found):
        console.print(table)
    errors = [key for section in sections.values() for key, record in section["cells"].items() if "error" in record]
    wrong = [verdict for verdict in checks if verdict.met is False]
    return 1 if errors or wrong else 0


def _plots(store: Store) -> list[str]:
    """Draw them; what to say about it."""
    if find_spec("matplotlib") is None:
        return [f"no plots without matplotlib: python -m benchmarks.gpu.plots {store.path.name} draws them elsewhere"]
    files = plots.draw(store.content, store.path)
    return [f"plots: {', '.join(file.name for file in files)}"] if files else []


def _needed(arguments: argparse.Namespace, store: Store) -> bool:
    """Whether the ceilings must be measured though nobody asked for them."""
    return bool({"operator", "e2e"} & set(arguments.sections)) and not _has_ceilings(store, arguments.dry_run)


def _has_ceilings(store: Store, dry_run: bool) -> bool:
    return store.cells("ceilings").keys() >= ceilings.cells(dry_run).keys()
