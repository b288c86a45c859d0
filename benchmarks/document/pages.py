"""Where tables stand in the pages.

What is between `<!-- table: NAME -->` and `<!-- end -->` is written from the results, or from what was
tested; what is around it, by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import cpu, gpu, peers, quality, reasons, works_with

DOCS = Path(__file__).parents[2] / "docs"
TABLES = cpu.TABLES | gpu.TABLES | peers.TABLES | quality.TABLES | reasons.TABLES | works_with.TABLES
_PLACE = re.compile(r"(?P<head><!-- table: (?P<name>[\w-]+) -->\n).*?(?P<tail><!-- end -->\n)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that have a table, and the README if it has one."""
    paths = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
    return [path for path in paths if _PLACE.search(path.read_text(encoding="utf-8"))]


def filled(text: str) -> str:
    """A page's text with its tables written anew.

    Raises:
        ValueError: the page asks for a table that there is not.
    """

    def fill(place: re.Match[str]) -> str:
        if place["name"] not in TABLES:
            raise ValueError(f"a page's table must be one of {', '.join(TABLES)}; got {place['name']!r}.")
        return f"{place['head']}\n{TABLES[place['name']]()}\n{place['tail']}"

    return _PLACE.sub(fill, text)
