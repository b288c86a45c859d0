"""The look of the notebooks' pictures, and a batch drawn as what is stored of it. Needs matplotlib."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's, told apart by the colour-blind too; the same contenders have them in benchmarks/gpu/plots.py.
STOCK, RELAY, KEPT = "#444444", "#E69F00", "#D55E00"
SHARED = ("#D55E00", "#E69F00", "#56B4E9", "#CC79A7", "#009E73")
OWN = "#CFCFCF"

_STYLE = {
    "figure.figsize": (8.3, 3.4),
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E4E4E4",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
_LINE = re.compile(r"^( *)(\d+) tokens?, (?:row (\d+)|\d+ rows \(([\d, -]+)\))")


def use_style() -> None:
    """Give all figures from here on the notebooks' look, at the width of a README."""
    mpl.rcParams.update(_STYLE)


@dataclass(frozen=True)
class Block:
    """Tokens that are stored once: `length` of them from position `start`, for `rows`."""

    start: int
    length: int
    rows: tuple[int, ...]


def blocks(tree: str) -> list[Block]:
    """The tree of `model.relay.explain(...)`, a block for each of its lines."""
    found: list[Block] = []
    ends: list[int] = []  # of the blocks that lead to the line, by level
    for line in tree.splitlines():
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"tree must have a line such as '20 tokens, 6 rows (0-5)' for each run; got {line!r}.")
        level, length = len(match[1]) // 2, int(match[2])
        start = ends[level - 1] if level else 0
        ends[level:] = [start + length]
        found.append(Block(start, length, _rows(match[3] or match[4])))
    return found


def draw_batch(axis: Axes, lengths: list[int], shared: list[Block]) -> None:
    """Draw what is stored of a batch: a line for each row, and one color for all that is stored once.

    Args:
        axis: where to draw.
        lengths: tokens of each row.
        shared: what is stored once; nothing for stock, which stores each row whole.
    """
    begins = [0] * len(lengths)
    for number, block in enumerate(shared):
        for first, last in _together(block.rows):
            _field(axis, block.start, first, block.length, last - first + 1, SHARED[number % len(SHARED)])
        for row in block.rows:
            begins[row] = block.start + block.length
    for row, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
        _field(axis, begin, row, max(length - begin, 0), 1, OWN)
    axis.set(xlim=(0, max(lengths)), ylim=(len(lengths), 0), xlabel="position in the prompt, tokens", ylabel="row")
    axis.set_yticks([0.5, len(lengths) - 0.5], ["0", str(len(lengths) - 1)])
    axis.grid(visible=False)


def stored_tokens(lengths: list[int], shared: list[Block]) -> int:
    """Tokens whose keys and values are stored: each of `shared` once, and what each row has of its own."""
    once = sum(block.length for block in shared)
    return sum(lengths) - sum(block.length * len(block.rows) for block in shared) + once


def _field(axis: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    axis.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="white", linewidth=1))


def _rows(text: str) -> tuple[int, ...]:
    """`"0-2, 5"` as `(0, 1, 2, 5)`."""
    spans = [part.split("-") for part in text.split(", ")]
    return tuple(row for span in spans for row in range(int(span[0]), int(span[-1]) + 1))


def _together(rows: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and last of each stretch of rows that follow each other."""
    firsts = [row for row in rows if row - 1 not in rows]
    lasts = [row for row in rows if row + 1 not in rows]
    return list(zip(firsts, lasts, strict=True))
