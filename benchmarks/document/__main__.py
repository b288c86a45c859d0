"""The command line: `python -m benchmarks.document [--write]`."""

from __future__ import annotations

import argparse
import sys

from .pages import DOCS, filled, pages


def main() -> int:
    """Write the tables anew, or name the pages whose tables are not what the results give."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the pages; otherwise they are only checked")
    arguments = parser.parse_args()
    stale = [path for path in pages() if filled(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")]
    for path in stale:
        print(f"{'written' if arguments.write else 'out of date'}: {path.relative_to(DOCS.parent)}")
        if arguments.write:
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    return int(bool(stale) and not arguments.write)


if __name__ == "__main__":
    sys.exit(main())
