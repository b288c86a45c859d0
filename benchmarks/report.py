"""What is printed and what is written: tables, and JSON with versions and hardware."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Column, Table

import relay_hf

from .grid import LIMIT, PATCHED, Cell
from .measure import Measurement
from .workloads import Workload


def workload_table(name: str, workload: Workload, measurements: list[Measurement]) -> Table:
    """One row a contender: median seconds, their spread, and the ratios to stock and to the floor."""
    medians = {measurement.contender: measurement.median for measurement in measurements}
    title = f"{name}: {workload.rows} prompts, {_shared(workload)}, own {workload.own}, {workload.new} new tokens"
    title += "".join(f", {option}={value}" for option, value in workload.options.items())
    columns = ("seconds", "min - max", "stock / this", "this / floor", "tokens")
    table = Table("contender", *(Column(column, justify="right") for column in columns), title=title)
    for measurement in measurements:
        table.add_row(
            measurement.contender,
            f"{measurement.median:.3f}",
            f"{min(measurement.seconds):.3f} - {max(measurement.seconds):.3f}",
            f"{medians['stock'] / measurement.median:.2f}x" if "stock" in medians else "-",
            f"{measurement.median / medians['floor']:.2f}x" if "floor" in medians else "-",
            {True: "identical", False: "differ", None: "-"}[measurement.same_tokens],
        )
    return table


def _shared(workload: Workload) -> str:
    levels = [
        f"{tokens} tokens of {groups}" if groups > 1 else f"prefix {tokens}" for tokens, groups in workload.levels
    ]
    return " + ".join(levels) or "nothing shared"


def grid_table(cells: list[Cell]) -> Table:
    """One row a cell, marked where a ratio is over the limit."""
    columns = ("rows", "prefix", "own", "new", "stock s", "cold / stock", "kept / stock", "rounds", "")
    table = Table(*(Column(column, justify="right") for column in columns), title="patched over stock, policy auto")
    for cell in cells:
        workload, stock = cell.workload, cell.measurements[0]
        ratios = (f"{ratio:.3f} ± {noise:.3f}" for ratio, noise in map(cell.ratio, PATCHED))
        shape = (workload.rows, workload.prefix, workload.own, workload.new)
        mark = "[red]slower[/]" if cell.worst > LIMIT else ""
        table.add_row(*map(str, shape), f"{stock.median:.3f}", *ratios, str(len(stock.seconds)), mark)
    return table


def environment() -> dict[str, Any]:
    """Versions and hardware."""
    packages = ("torch", "transformers")
    return {
        "versions": {"python": platform.python_version(), "relay_hf": relay_hf.__version__}
        | {package: version(package) for package in packages},
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
    }


def workload_record(name: str, workload: Workload, measurements: list[Measurement]) -> dict[str, Any]:
    """All rounds of a workload, for JSON."""
    contenders = [asdict(measurement) | {"median": measurement.median} for measurement in measurements]
    return {"name": name, "workload": asdict(workload), "contenders": contenders}


def cell_record(cell: Cell) -> dict[str, Any]:
    """All rounds of a cell of the grid, for JSON."""
    ratios = {contender: dict(zip(("ratio", "noise"), cell.ratio(contender), strict=True)) for contender in PATCHED}
    return workload_record("grid", cell.workload, cell.measurements) | {"over_stock": ratios}


def write_json(path: Path, **content: Any) -> None:
    """`content` with the environment on top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(environment() | content, indent=2) + "\n", encoding="utf-8")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
