"""The command line: `python -m tests.fuzz --cases 10000 --jobs 2`, or `--case 123456` for one."""

from __future__ import annotations

import argparse
import random
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.options import refuse

from . import models, sizes, workers
from .precision import DTYPES
from .report import FAILURES, Summary, describe, finding
from .shrink import shrink

_CASES_OF_A_SEED = 1_000_000
console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def main() -> int:
    """Run what was asked for; 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="which ones (default: a fresh one, printed)")
    parser.add_argument("--case", type=int, help="run this one and print it")
    parser.add_argument("--shrink", action="store_true", help="with --case: make it smaller while it still differs")
    parser.add_argument("--types", help="model types, with commas between them (default: all that there are)")
    parser.add_argument("--dtype", choices=DTYPES, default="float64")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    arguments = parser.parse_args()
    types = tuple(arguments.types.split(",")) if arguments.types else sizes.model_types()
    unknown = sorted(set(types) - set(sizes.model_types()))
    if unknown:
        parser.error(f"--types must be among {', '.join(sizes.model_types())}; got {', '.join(unknown)}")
    if arguments.case is None:
        refuse(parser, arguments, ["shrink"], "only one --case is made smaller")
    else:
        refuse(parser, arguments, ["cases", "seed", "jobs"], "--case runs one case, in this process")
        return _one(arguments.case, types, arguments.dtype, arguments.shrink)
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    first = seed * _CASES_OF_A_SEED
    return _many(range(first, first + arguments.cases), seed, types, arguments.dtype, arguments.jobs)


def _one(number: int, types: tuple[str, ...], dtype: str, smaller: bool) -> int:
    (outcome,) = workers.outcomes([number], types, dtype, jobs=1)
    if smaller and outcome.kind == "mismatch":
        with console.status("shrinking") as status:
            outcome = shrink(outcome, dtype, lambda each: status.update(f"shrinking: {each.detail}"))
    built = outcome.kind != "left out"
    overrides = models.build(outcome.case.model_type, outcome.case.size, dtype).overrides if built else None
    print(describe(outcome, overrides))
    return int(outcome.kind in FAILURES)


def _many(numbers: range, seed: int, types: tuple[str, ...], dtype: str, jobs: int) -> int:
    console.print(f"seed {seed}, {dtype}, {len(types)} model types, {jobs} processes")
    summary, began = Summary(dtype), time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("cases", total=len(numbers))
        for outcome in workers.outcomes(numbers, types, dtype, jobs):
            summary.add(outcome)
            progress.advance(task)
            if outcome.kind in ("mismatch", "near-tie", "broken"):
                console.print(finding(outcome, dtype), soft_wrap=True, markup=False)
    console.print(summary.table(time.perf_counter() - began))
    return int(summary.failed)


if __name__ == "__main__":
    sys.exit(main())
