"""The command line: `python -m tests.fuzz_files --cases 5000`, or `--case 3000017` for one."""

from __future__ import annotations

import argparse
import random
import sys
import time

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.options import refuse

from . import __doc__ as description
from .case import draw
from .report import Summary
from .run import run

_CASES_OF_A_SEED = 1_000_000


def main() -> int:
    """Run what was asked for; 1 if anything is found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_files", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="which ones (default: a fresh one, printed)")
    parser.add_argument("--case", type=int, help="run this one and print it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.case is not None:
        refuse(parser, arguments, ["cases", "seed"], "--case runs one case")
        print(draw(arguments.case))
        outcome = run(arguments.case)
        print(f"=> {outcome.kind} {outcome.detail}")
        return int(outcome.kind == "finding")
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(f"seed {seed}")
    summary, began, first = Summary(), time.perf_counter(), seed * _CASES_OF_A_SEED
    numbers = range(first, first + arguments.cases)
    for number in track(numbers, "cases", console=console, transient=True, disable=not console.is_terminal):
        outcome = run(number)
        summary.add(outcome)
        if outcome.kind == "finding":
            console.print(summary.findings[-1], soft_wrap=True, markup=False)
    console.print(summary.table(time.perf_counter() - began))
    return int(bool(summary.findings))


if __name__ == "__main__":
    sys.exit(main())
