"""The summary: short enough that its end, the verdicts, stays in sight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from . import e2e_tables
from .store import Record
from .verdicts import Verdict
from .workload import BATCHES, HEADS

_MARKS = {True: "[green]met[/]", False: "[red]missed[/]", None: "-"}
_MOST = 12  # lines about cells left out or failed


def summary(content: Record, verdicts: list[Verdict]) -> Iterator[Any]:
    """Tables and lines to print, the verdicts last."""
    sections = content["sections"]
    operator = [r for r in sections.get("operator", {}).get("cells", {}).values() if "error" not in r]
    for heads in dict.fromkeys([*HEADS, *((r["heads"], r["kv_heads"]) for r in operator)]):
        mine = [record for record in operator if (record["heads"], record["kv_heads"]) == heads]
        if mine:
            yield _operator_table(heads, mine)
    if sections.get("gate", {}).get("cells"):
        yield _gate_table(sections["gate"]["cells"])
    yield from e2e_tables.summary(sections.get("e2e", {}).get("cells", {}))
    yield from _ceilings(sections)
    yield from _baselines(operator)
    yield from _wrong(sections)
    yield from _not_there(sections)
    title = "dry run on a CPU: no figure is a measurement" if content["dry_run"] else f"verdicts, {content['chip']}"
    table = Table("goal", "", "found", title=title, box=SIMPLE_HEAD)
    for verdict in verdicts:
        table.add_row(verdict.goal, _MARKS[verdict.met], verdict.found)
    yield table


def _operator_table(heads: tuple[int, int], records: list[Record]) -> Table:
    """Microseconds, share of the floor, and times flash, by prefix and rows."""
    cells = {(record["prefix"], record["batch"]): record for record in records}
    batches = sorted({batch for _, batch in cells} or BATCHES)
    title = f"{heads[0]}/{heads[1]} heads: us, share of the floor, speed over flash"
    table = Table(
        "P", *(Column(f"B={batch}", justify="right") for batch in batches), title=title, padding=0, box=SIMPLE_HEAD
    )
    for prefix in sorted({prefix for prefix, _ in cells}):
        table.add_row(str(prefix), *(_operator_cell(cells.get((prefix, batch))) for batch in batches))
    return table


def _operator_cell(record: Record | None) -> str:
    if record is None:
        return "-"
    flash = "-" if record["flash_us"] is None else f"{record['flash_us'] / record['ours_us']:.1f}x"
    return f"{record['ours_us']:.1f} {record['share_of_floor']:.2f} {flash}"


def _gate_table(cells: dict[str, Record]) -> Table:
    """Measured gain beside the expected one."""
    columns = ("stock s", "cold s", "kept s", "cold gain s", "expected", "kept gain s", "expected")
    table = Table(
        "generate()", *(Column(column, justify="right") for column in columns), title="the gate", box=SIMPLE_HEAD
    )
    for key, record in cells.items():
        if "error" not in record:
            gains = [record[what][name] for name in record["gain"] for what in ("gain", "predicted_gain")]
            numbers = [*record["seconds"].values(), *gains]
            table.add_row(key, *(f"{number:.3f}" for number in numbers))
    return table


def _ceilings(sections: dict[str, Record]) -> Iterator[str]:
    cells = sections.get("ceilings", {}).get("cells", {})
    if "bytes_per_second" in cells.get("copy", {}):
        yield f"copy: {cells['copy']['bytes_per_second'] / 1e12:.2f} TB/s"
    if "flop_per_second" in cells.get("matrix product", {}):
        yield f"bf16 matrix product: {cells['matrix product']['flop_per_second'] / 1e12:.0f} TFLOP/s"


def _baselines(operator: list[Record]) -> Iterator[str]:
    """Why forms of baselines have no time, and in how many cells."""
    reasons = Counter(
        f"{name.removesuffix('_forms')} {form}: {time}"
        for record in operator
        for name, forms in record.items()
        if name.endswith("_forms")
        for form, time in forms.items()
        if isinstance(time, str)
    )
    for text, count in reasons.most_common(_MOST):
        yield escape(f"{text[:160]} ({count} of {len(operator)} cells)")


def _wrong(sections: dict[str, Record]) -> Iterator[str]:
    """What checks that say so have found to be wrong."""
    for name, section in sections.items():
        found = [
            f"{name}: {key}: {what}" for key, record in section["cells"].items() for what in record.get("wrong", ())
        ]
        for line in found[:_MOST]:
            yield escape(" ".join(line.split())[:300])
        if len(found) > _MOST:
            yield f"{name}: {len(found) - _MOST} more that are wrong, in the file"


def _not_there(sections: dict[str, Record]) -> Iterator[str]:
    """Cells that failed or were left out; by reason where there are many."""
    for name, section in sections.items():
        errors = {key: record["error"] for key, record in section["cells"].items() if "error" in record}
        for key, error in list(errors.items())[:_MOST]:
            yield escape(f"{name}: {key}: {' '.join(error.split())[:160]}")
        for why in dict.fromkeys(section["left_out"].values()):
            keys = [key for key, reason in section["left_out"].items() if reason == why]
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            yield escape(f"{name}: left out, {why}: {', '.join(keys[:3])}{more}")
