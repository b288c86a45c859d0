"""The picture of a result: a panel for each workload, in it a bar for each contender."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from relay_hf.cli.benchmark.record import Record
from relay_hf.cli.output_file import write_output

from .contenders import CONTENDERS
from .words import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by the colour-blind too.
_RELAY, _STOCK, _OTHER, _BOUND = "#D55E00", "#333333", "#8DA9C4", "#CCCCCC"
_STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.hashsalt": "relay_hf",  # the same figures give the same file
}
_LEGEND = (
    "seconds of one call: median, fastest and slowest round\n"
    "bold: how many times as fast as stock; grey: other prompts, less work;\n"
    "dashed: token-once, each token once, with stock's loop"
)
_WIDTH, _BAR, _PANEL = 8.3, 0.3, 0.95  # inches: of the figure, of a bar, of a panel beside its bars
FORMATS = (".png", ".svg")


def draw(content: Record, path: Path) -> None:
    """Draw a result (`relay_hf.cli.benchmark.record.result` with `workloads`, or what was read of its JSON).

    Bars are medians in seconds, whiskers the fastest and the slowest round; a dashed line is at token-once.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing in `content` can be drawn, or the name of `path` ends neither in .png nor in .svg.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"the plot's name must end in {' or '.join(FORMATS)}; got {path.name!r}.")
    records = content.get("workloads")
    if not records:
        raise ValueError("the result has no workloads to draw.")
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    heights = [_PANEL + _BAR * len(record["contenders"]) for record in records]
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(records),
            figsize=(_WIDTH, sum(heights) + 0.5),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        for axis, record in zip(axes[:, 0], records, strict=True):
            _panel(axis, record)
        axes[-1, 0].set_xlabel(_LEGEND, fontsize=10)
        hardware = content["hardware"]
        where = f"{hardware['cpu']}, {hardware['threads']} threads"
        figure.suptitle(f"generate() on {hardware.get('gpu') or where}", fontsize=12.5, fontweight="bold")
        kind = path.suffix.removeprefix(".")
        dated = {"metadata": {"Date": None}} if kind == "svg" else {}
        write_output(path, lambda to: figure.savefig(to, format=kind, dpi=200, **dated))
    plt.close(figure)


def _panel(axis: Axes, record: Record) -> None:
    entries = record["contenders"]
    medians = {each["contender"]: statistics.median(each["seconds"]) for each in entries}
    stock = medians.get("stock")
    for place, each in enumerate(entries):
        name, seconds = each["contender"], each["seconds"]
        median = medians[name]
        spread = [[median - min(seconds)], [max(seconds) - median]]
        axis.barh(place, median, 0.7, color=_color(name), xerr=spread, error_kw={"capsize": 2.5, "elinewidth": 1})
        ratio = f"  {stock / median:.1f}x" if stock and CONTENDERS[name].relays else ""
        axis.annotate(
            f"{median:#.3g} s{ratio}",
            (max(seconds), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            fontweight="bold" if ratio else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # over the dashed line
        )
    if "token-once" in medians:
        axis.axvline(medians["token-once"], color="#666666", linestyle="--", linewidth=1, zorder=0)
    axis.set_yticks(range(len(entries)), [each["contender"] for each in entries])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.2 * max(max(each["seconds"]) for each in entries))
    axis.set_title(f"{record['name']}: {describe(record['workload'])}", fontsize=11, loc="left")


def _color(name: str) -> str:
    """Ours, stock's, of those that answer other prompts, of the rest."""
    if CONTENDERS[name].relays:
        return _RELAY
    if CONTENDERS[name].tokens == "other":
        return _BOUND
    return _STOCK if name == "stock" else _OTHER
