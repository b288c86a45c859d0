"""The plots of a result: `python -m benchmarks.gpu.plots result.json` draws them again beside the JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .e2e_tables import relay_of
from .store import Record

_PANELS = {"G1": "Llama-2-7B shape", "G2": "Llama-3-8B shape"}
_ROWS = 32  # of the panels; of others where a result has none of these, as a dry run
# Okabe and Ito's colours, told apart by the colour-blind too; markers tell them apart in grey.
_LOOKS = {
    "relay-kept": ("relay, prefix kept", "#D55E00", "o"),
    "relay-cold": ("relay, nothing kept", "#E69F00", "s"),
    "static-cache": ("static cache, compiled", "#009E73", "^"),
    "continuous-batching": ("continuous batching", "#CC79A7", "v"),
    "prefix-copied": ("prefix copied", "#56B4E9", "D"),
    "stock": ("stock generate()", "#000000", "X"),
}
_FLOORS = (
    ("stock_floor_step_s", "floor, shared KV read once a row", "#888888"),
    ("floor_step_s", "floor, shared KV read once", "#D55E00"),
)
_NOTE = "at prefix 0, the relay has 16 shared tokens: a call that shares nothing is left to stock"
_STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "svg.hashsalt": "relay_hf",  # the same figures give the same file
}
Value = Callable[[Record], float | None]


def draw(content: Record, path: Path) -> list[Path]:
    """Draw what a result has, beside `path`, the JSON's; the files, none where nothing was measured end to end."""
    records = content["sections"].get("e2e", {}).get("cells", {}).values()
    panels = {name: _cells(records, name) for name in _PANELS}
    panels = {name: cells for name, cells in panels.items() if cells}
    if not panels:
        return []
    import matplotlib as mpl

    mpl.use("Agg")
    with mpl.rc_context(_STYLE):
        chip = "a dry run: no figure is a measurement" if content["dry_run"] else content["chip"]
        return [
            *_figure(
                panels, _throughput, "tokens per second, prefill included", f"generate() on {chip}", path, "speed"
            ),
            *_figure(panels, _step, "ms a decode step", f"A decode step on {chip}", path, "step"),
        ]


def _cells(records: Iterable[Record], name: str) -> list[Record]:
    """Of a panel: one by prefix."""
    mine = [record for record in records if "error" not in record and record["workload"] == name]
    rows = _ROWS if any(record["rows"] == _ROWS for record in mine) else max((r["rows"] for r in mine), default=0)
    return sorted((record for record in mine if record["rows"] == rows), key=lambda record: record["prefix"])


def _figure(
    panels: dict[str, list[Record]],
    fill: Callable[[Any, list[Record]], None],
    y: str,
    title: str,
    path: Path,
    name: str,
) -> list[Path]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(8, 4.4), squeeze=False, sharey=True, layout="constrained")
    for axis, (panel, cells) in zip(axes[0], panels.items(), strict=True):
        fill(axis, cells)
        axis.set_title(f"{panel}: {_PANELS[panel]}, {cells[0]['rows']} rows", fontsize=11)
        axis.set_xticks(range(len(cells)), [f"{cell['prefix']:,}" for cell in cells])
        axis.set_xlabel("shared prefix, tokens")
        axis.set_xlim(-0.3, len(cells) - 0.7)
    axes[0][0].set_ylabel(y)
    found = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.suptitle(title, fontsize=12.5, fontweight="bold")
    looks = {"frameon": False, "fontsize": 10, "title": _NOTE, "title_fontsize": 9}
    columns = 2 if len(found) < 5 else 3
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, **looks)
    files = [path.with_name(f"{path.stem}_{name}.{kind}") for kind in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=200, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return files


def _throughput(axis: Any, cells: list[Record]) -> None:
    for name, (label, color, marker) in _LOOKS.items():
        _line(axis, cells, lambda cell, name=name: _entry(cell, name).get("tokens_per_second"), label, color, marker)
    axis.set_ylim(bottom=0)
    for cell in cells:
        lacking = [
            label for name, (label, _, _) in _LOOKS.items() if "does_not_fit" in cell["contenders"].get(name, {})
        ]
        if lacking:
            text = "\n".join([f"{cell['prefix']:,}: out of memory", *lacking])
            place = {"xytext": (0, 45), "textcoords": "offset points", "ha": "right", "fontsize": 8.5}
            axis.annotate(text, (cells.index(cell) + 0.2, 0), color="#555555", **place)


def _step(axis: Any, cells: list[Record]) -> None:
    def stock(cell: Record) -> float | None:
        return _ms(cell["contenders"].get("stock", {}).get("step_s"))

    _line(axis, cells, stock, *_LOOKS["stock"])
    _line(
        axis,
        cells,
        lambda cell: _ms(cell["stock_floor_step_s"]),
        "floor, shared KV read once a row",
        "#888888",
        "",
        "--",
    )
    _line(axis, cells, lambda cell: _ms(relay_of(cell)[1].get("step_s")), *_LOOKS["relay-kept"])
    _line(axis, cells, lambda cell: _ms(cell["floor_step_s"]), "floor, shared KV read once", "#D55E00", "", "--")
    axis.set_yscale("log")
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _line(axis: Any, cells: list[Record], value: Value, label: str, color: str, marker: str, style: str = "-") -> None:
    points = [(place, y) for place, y in enumerate(map(value, cells)) if y is not None]
    if points:
        axis.plot(*zip(*points, strict=True), style, label=label, color=color, marker=marker or None)


def _entry(cell: Record, name: str) -> Record:
    """A contender's; where no prefix is, the relay's is that with 16 tokens, cold or not."""
    if name.startswith("relay") and not cell["prefix"]:
        return cell["contenders"].get("relay-16", {}) if name == "relay-kept" else {}
    return cell["contenders"].get(name, {})


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.plots", description=__doc__)
    parser.add_argument("result", type=Path, help="JSON of python -m benchmarks.gpu")
    path = parser.parse_args().result
    files = draw(json.loads(path.read_text(encoding="utf-8")), path)
    print(*files or [f"{path} has nothing measured end to end"], sep="\n")


if __name__ == "__main__":
    main()
