"""The CPU benchmark: `python -m benchmarks.cpu --workload C1 C2 --json out.json`, or `--grid`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers.utils import logging

from . import report
from .contenders import CONTENDERS, Bench
from .grid import LIMIT, PREFIX, Cell, cells, run_cell
from .measure import measure
from .workloads import C1_MODEL, WORKLOADS

console = Console(width=None if sys.stdout.isatty() else 120)


def run_workload(name: str, arguments: argparse.Namespace, on_call: Callable[[str], None]) -> tuple[dict, list[str]]:
    """The record of a workload, and the exact contenders whose tokens were not stock's."""
    workload = WORKLOADS[name]
    names = [each for each in arguments.contenders if CONTENDERS[each].fits(workload)]
    bench = Bench(workload, arguments.policy)
    measurements = measure(bench, names, lambda done, _: len(done[0].seconds) >= arguments.rounds, on_call)
    console.print(report.workload_table(name, workload, measurements))
    exact = [each for each in measurements if CONTENDERS[each.contender].tokens == "exact"]
    wrong = [each.contender for each in exact if each.same_tokens is False]
    verdict = f"differ: {', '.join(wrong)}" if wrong else "identical"
    console.print(f"tokens of {', '.join(each.contender for each in exact)}: {verdict}")
    for each in measurements:
        if each.report:
            console.print(f"{each.contender}: {each.report}")
    return report.workload_record(name, workload, measurements), wrong


def run_grid(arguments: argparse.Namespace, on_call: Callable[[str], None]) -> list[Cell]:
    """All cells of the grid, printed with the worst one."""
    model, done = C1_MODEL.build(), []
    for number, workload in enumerate(cells(arguments.prefixes), start=1):
        bench = Bench(workload, arguments.policy, model)
        label = f"cell {number}: {workload.rows} x {workload.prefix} + {workload.own}, {workload.new} new"
        done.append(run_cell(bench, arguments.cell_seconds, lambda name, label=label: on_call(f"{label}: {name}")))
    console.print(report.grid_table(done))
    worst = max(done, key=lambda cell: cell.worst)
    slower = sum(cell.worst > LIMIT for cell in done)
    console.print(f"worst cell {worst.worst:.3f} of stock ({worst.workload}); {slower} of {len(done)} over {LIMIT}")
    return done


def main() -> int:
    """Run what was asked for; 1 if an exact contender's tokens were not stock's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workload", nargs="+", choices=WORKLOADS, metavar="ID", help=", ".join(WORKLOADS))
    what.add_argument("--grid", action="store_true", help="never slower: calls of many shapes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a workload (default: %(default)s)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS], metavar="NAME")
    parser.add_argument("--cell-seconds", type=float, default=30, help="budget of a cell (s, default: %(default)s)")
    parser.add_argument("--prefixes", nargs="+", type=int, default=PREFIX, help="of the grid (default: %(default)s)")
    parser.add_argument("--policy", choices=("auto", "always", "off"), default="auto")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, help="write all rounds, versions and hardware here")
    arguments = parser.parse_args()

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    wrong: list[str] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def show(description: str) -> None:
            progress.update(task, description=description)

        if arguments.grid:
            content = {"grid": [report.cell_record(cell) for cell in run_grid(arguments, show)]}
        else:
            content = {"workloads": []}
            for name in arguments.workload:
                record, differing = run_workload(name, arguments, lambda each, name=name: show(f"{name}: {each}"))
                content["workloads"].append(record)
                wrong += differing
    if arguments.json:
        report.write_json(arguments.json, policy=arguments.policy, **content)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
