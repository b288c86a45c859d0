"""The tuner: `python -m benchmarks.tune --minutes 9 --write` measures tiles on this chip and rewrites its rows."""

from __future__ import annotations

import argparse
import os
import sys

from .options import output_file, refuse


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--kernel", choices=("decode", "few", "prefill"), help="only that one (default: all)")
    parser.add_argument("--minutes", type=float, default=9, help="for everything (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="rewrite the chip's rows of the table")
    parser.add_argument("--table", type=output_file, help="the file to write (default: the table in use)")
    parser.add_argument("--workers", type=int, default=16, help="processes that compile (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU: checks the tuner itself")
    arguments = parser.parse_args()
    if not arguments.write:
        refuse(parser, arguments, ["table"], "without --write no table is written")
    if arguments.dry_run and arguments.write and not arguments.table:
        parser.error("--dry-run measures nothing: give --table a file of its own to write")
    return arguments


def main() -> int:
    """Tune the rows of this machine's chip."""
    arguments = parse()
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: nothing imports it before this line
    from .gpu.tuner import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
