"""The GPU benchmark: `python -m benchmarks.gpu --minutes 8`. Needs nothing from the network, can be resumed."""

from __future__ import annotations

import argparse
import os
import re
import sys

from ..options import output_file, refuse

# In the order in which they run.
SECTIONS = ("ceilings", "correctness", "generate", "sanitizer", "operator", "gate", "e2e")

CONTENDERS = (  # of e2e
    "stock",
    "prefix-copied",
    "continuous-batching",
    "relay-cold",
    "relay-kept",
    "relay-16",
    "static-cache",
)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=13, help="for everything (default: %(default)s)")
    parser.add_argument("--out", type=output_file, help="the JSON (default: benchmarks/results/gpu_<chip>.json)")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=[*SECTIONS],
        metavar="NAME",
        help=f"of {', '.join(SECTIONS)}; correctness checks attention alone, generate whole calls (default: all)",
    )
    parser.add_argument(
        "--cells", type=_pattern, metavar="REGEX", help="only cells whose key matches somewhere; the ceilings always"
    )
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of e2e, of {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what the JSON has")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU: checks the benchmark itself")
    parser.add_argument(
        "--workers", type=int, default=12, help="processes that compile and check (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if "e2e" not in arguments.sections:
        refuse(parser, arguments, ["contenders"], "only the section e2e has contenders")
    return arguments


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, got {text!r}: {error}") from error


def main() -> int:
    """Run the sections; 1 if anything came out wrong or failed to run."""
    arguments = parse()
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: nothing imports it before this line
    from .session import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
