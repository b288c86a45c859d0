"""Draws how_it_works.svg: `python docs/figures/how_it_works.py`.

The card has a background of its own, so that it reads the same on light and dark pages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

PATH = Path(__file__).with_suffix(".svg")
SHARED, INK, QUIET, CARD = "#2f6db5", "#1f2328", "#57606a", "#ffffff"
ROWS = ("#e69f00", "#009e73", "#cc79a7", "#d55e00")
LINE, QUERY = 3.2, 6.0  # height of a row's bar, width of its query
OWN = (12, 14, 16, 12)  # widths of the rows' own parts


def bar(axes: Axes, x: float, y: float, width: float, colour: str, height: float = LINE) -> None:
    """A run of tokens, or a query."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=CARD, linewidth=1.2))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From what is read to what is read with it."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=QUIET, linewidth=1.2))


def rows(axes: Axes, x: float, top: float, widths: Sequence[float]) -> None:
    """A bar for each row, one under the other."""
    for row, (colour, width) in enumerate(zip(ROWS, widths, strict=True)):
        bar(axes, x, top - (row + 1) * LINE, width, colour)


def stock(axes: Axes, top: float) -> None:
    """Four rows, each with its own copy of what they share."""
    axes.text(3, top + 2.6, "stock: every row has a copy of the shared part", weight="bold", color=INK)
    rows(axes, 3, top, [QUERY] * 4)
    for row in range(4):
        bar(axes, 16, top - (row + 1) * LINE, 52, SHARED)
    rows(axes, 68, top, OWN)
    below = {"y": top - 4 * LINE - 1.2, "va": "top", "color": QUIET}
    axes.text(3, s="query", **below)
    axes.text(16, s="shared part: computed, stored and read four times", **below)
    axes.text(70, s="own part", **below)


def relay(axes: Axes, top: float) -> None:
    """What they share once, under the queries of all rows; their own parts; the merge."""
    axes.text(3, top + 2.6, "relay_hf: the shared part once, for all rows", weight="bold", color=INK)
    own, height = top - 20, 4 * LINE
    for y in (top, own):
        rows(axes, 3, y, [QUERY] * 4)
        rows(axes, 80, y, [QUERY / 2] * 4)
        axes.text(73, y - height / 2 + 0.8, "out, LSE", ha="center", color=QUIET)
        arrow(axes, (9.6, y - height / 2), (15.4, y - height / 2))
        arrow(axes, (84, y - height / 2), (91.4, (top + own - height) / 2))
    bar(axes, 16, top - (height + LINE) / 2, 52, SHARED)
    arrow(axes, (68.6, top - height / 2), (79.4, top - height / 2))
    rows(axes, 16, own, OWN)
    arrow(axes, (33, own - height / 2), (79.4, own - height / 2))
    axes.text(95, (top + own - height) / 2, "merge", ha="center", va="center", color=INK, weight="bold")
    below = {"va": "top", "color": QUIET}
    axes.text(3, top - height - 1.2, "queries of all rows,\none matrix", **below)
    axes.text(16, top - (height - LINE) / 2 - 4.6, "shared part: computed, stored and read once", **below)
    axes.text(3, own - height - 1.2, "row by row", **below)
    axes.text(16, own - height - 1.2, "own parts", **below)
    axes.text(97, own - height - 1.2, "weighted by exp(LSE): attention over the whole prompt", ha="right", **below)


def draw(path: Path = PATH) -> None:
    """Write the picture; as PNG, if the name says so."""
    style = {"font.size": 10, "font.family": "DejaVu Sans", "svg.hashsalt": "relay_hf", "svg.fonttype": "path"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.6, 6.0))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 100), ylim=(0, 70))
        axes.axis("off")
        card = {"boxstyle": "round,pad=0,rounding_size=1.5", "facecolor": CARD, "edgecolor": "#d0d7de"}
        axes.add_patch(FancyBboxPatch((0.5, 0.5), 99, 69, **card))
        stock(axes, 63)
        relay(axes, 40)
        figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=97)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else PATH)
