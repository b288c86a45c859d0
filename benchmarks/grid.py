"""Never slower: calls of many shapes against stock; `python -m benchmarks.grid --json out.json`."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from transformers.utils import logging

from benchmarks.cpu.workloads import C1_MODEL
from benchmarks.options import output_file
from relay_hf.cli.benchmark import record
from relay_hf.cli.benchmark.bench import Bench
from relay_hf.cli.benchmark.contenders import CONTENDERS
from relay_hf.cli.benchmark.measure import Measurement, measure
from relay_hf.cli.benchmark.workload import Workload

PATCHED = ("relay-cold", "relay-kept")
LIMIT = 1.03  # of stock's seconds, in every cell
NOISE = 0.005  # standard error of a cell's ratio at which it is settled
ROWS, PREFIX, OWN, NEW = (1, 4, 16), (0, 64, 512), (8, 256), (1, 32)


@dataclass
class Cell:
    """A shape of call, and what was measured for it."""

    workload: Workload
    measurements: list[Measurement]

    def ratio(self, contender: str) -> tuple[float, float]:
        """The contender's seconds over stock's: the median of the rounds, and the standard error of that median."""
        seconds = {measurement.contender: measurement.seconds for measurement in self.measurements}
        ratios = [patched / stock for patched, stock in zip(seconds[contender], seconds["stock"], strict=True)]
        median = statistics.median(ratios)
        deviation = 1.4826 * statistics.median(abs(ratio - median) for ratio in ratios)
        return median, 1.2533 * deviation / math.sqrt(len(ratios))

    @property
    def worst(self) -> float:
        """The larger one of the two ratios."""
        return max(self.ratio(contender)[0] for contender in PATCHED)


def cells(prefixes: Sequence[int] = PREFIX) -> list[Workload]:
    """The shapes of the grid."""
    shapes = itertools.product(ROWS, prefixes, OWN, NEW)
    return [Workload(C1_MODEL, rows, prefix, own, new) for rows, prefix, own, new in shapes]


def run_cell(bench: Bench, cell_seconds: float, on_call: Callable[[str], None]) -> Cell:
    """Five rounds or more, until the noise is small or `cell_seconds` are over (then three will do)."""

    def enough(measurements: list[Measurement], elapsed: float) -> bool:
        rounds = len(measurements[0].seconds)
        noise = max(Cell(bench.workload, measurements).ratio(contender)[1] for contender in PATCHED)
        return (rounds >= 5 and noise < NOISE) or (rounds >= 3 and elapsed > cell_seconds)

    contenders = {name: CONTENDERS[name] for name in ("stock", *PATCHED)}
    return Cell(bench.workload, measure(bench, contenders, enough, on_call))


def table(done: Sequence[Cell]) -> Table:
    """One row a cell, marked where a ratio is over the limit."""
    columns = ("rows", "prefix", "own", "new", "stock s", "cold / stock", "kept / stock", "rounds", "")
    found = Table(*(Column(column, justify="right") for column in columns), title="patched over stock")
    for cell in done:
        workload, stock = cell.workload, cell.measurements[0]
        ratios = (f"{ratio:.3f} ± {noise:.3f}" for ratio, noise in map(cell.ratio, PATCHED))
        shape = (workload.rows, workload.prefix, workload.own, workload.new)
        mark = "[red]slower[/]" if cell.worst > LIMIT else ""
        found.add_row(*map(str, shape), f"{stock.median:.3f}", *ratios, str(len(stock.seconds)), mark)
    return found


def cell_record(cell: Cell) -> record.Record:
    """All rounds of a cell, for JSON."""
    ratios = {contender: dict(zip(("ratio", "noise"), cell.ratio(contender), strict=True)) for contender in PATCHED}
    return record.workload_record("grid", cell.workload, cell.measurements) | {"over_stock": ratios}


def main() -> int:
    """Run all cells and print them with the worst one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__)
    parser.add_argument("--cell-seconds", type=float, default=30, help="budget of a cell (s, default: %(default)s)")
    parser.add_argument("--prefixes", nargs="+", type=int, default=PREFIX, help="of the grid (default: %(default)s)")
    parser.add_argument("--policy", choices=("auto", "always", "off"), default="auto")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--json", type=output_file, help="write all rounds, versions and hardware here")
    arguments = parser.parse_args()

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    console = Console(width=None if sys.stdout.isatty() else 120)
    wanted = cells(arguments.prefixes)
    model, done = C1_MODEL.build(), []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        with suppress(KeyboardInterrupt):  # then the cells that were finished are shown and written
            for number, workload in enumerate(wanted, start=1):
                label = f"cell {number}: {workload.rows} x {workload.prefix} + {workload.own}, {workload.new} new"

                def show(name: str, label: str = label) -> None:
                    progress.update(task, description=f"{label}: {name}")

                done.append(run_cell(Bench(workload, arguments.policy, model), arguments.cell_seconds, show))
    interrupted = len(done) < len(wanted)
    if not done:
        return 130
    console.print(table(done))
    worst = max(done, key=lambda cell: cell.worst)
    slower = sum(cell.worst > LIMIT for cell in done)
    console.print(f"worst cell {worst.worst:.3f} of stock ({worst.workload}); {slower} of {len(done)} over {LIMIT}")
    if arguments.json:
        content = record.result(interrupted, policy=arguments.policy, grid=[cell_record(cell) for cell in done])
        record.write_json(arguments.json, content)
    return record.exit_code(interrupted)


if __name__ == "__main__":
    sys.exit(main())
