"""The command line: `python -m benchmarks.numerics [--small] [--write]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from .document import write
from .results import BOUND, Result
from .runs import calls, run
from .subjects import SMALL, SMALL_SEEDS, SUBJECTS

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def main() -> int:
    """Measure; 1 if a ratio is over the bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__)
    parser.add_argument("--small", action="store_true", help="few seeds, and no experts that are chosen")
    parser.add_argument("--write", action="store_true", help="write docs/numerics.md")
    parser.add_argument("--families", help="names of models, with semicolons between them (default: all)")
    parser.add_argument("--seeds", type=int, help="of each model (default: its own number)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.write and (arguments.small or arguments.families or arguments.seeds):
        parser.error("--write takes a full run: leave out --small, --families and --seeds")
    subjects = SMALL if arguments.small else SUBJECTS
    if arguments.families:
        known = [each.name for each in subjects]
        unknown = [name for name in arguments.families.split(";") if name not in known]
        if unknown:
            parser.error(f"--families must name some of {'; '.join(known)}; got {unknown[0]!r}")
        subjects = tuple(each for each in subjects if each.name in arguments.families.split(";"))
    seeds = arguments.seeds or (SMALL_SEEDS if arguments.small else None)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(calls(subjects, seeds)))
        on_call = partial(progress.update, bar, advance=1)
        results = run(subjects, seeds, arguments.jobs, lambda call: on_call(description=f"{call[0].name}, {call[1]}"))
    console.print(_table(results))
    over = [result for result in results if not result.within]
    for result in over:
        console.print(f"[red]over {BOUND}[/]: {result.subject} in {result.dtype}, {result.ratio:.3f}")
    if arguments.write:
        write(results)
    return int(bool(over))


def _table(results: Sequence[Result]) -> Table:
    right = ("seeds", "stock", "patched", "ratio", "median", "jumps")
    table = Table("model", "dtype", *(Column(name, justify="right") for name in right), "")
    for each in results:
        numbers = (f"{each.stock:.2e}", f"{each.patched:.2e}", f"{each.ratio:.3f} ± {each.deviation:.3f}")
        jumps = f"{each.jumps[0]} / {each.jumps[1]}" if each.routed else ""
        mark = "" if each.within else "[red]over[/]"
        table.add_row(each.subject, each.dtype, str(each.seeds), *numbers, f"{each.median:.3f}", jumps, mark)
    return table


if __name__ == "__main__":
    sys.exit(main())
