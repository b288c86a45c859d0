"""The summary of generate() end to end: who is how fast, how far a step is from its floor, and who is not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from .e2e_cells import WITH_PREFIX, WITHOUT_PREFIX
from .store import Record

NAMES = tuple(dict.fromkeys((*WITH_PREFIX, *WITHOUT_PREFIX)))
_MOST = 12  # lines about contenders without figures
_KERNELS = 5  # of a cell, in the summary; the JSON has more


def summary(cells: dict[str, Record]) -> Iterator[Any]:
    """Tables and lines to print."""
    cells = {key: record for key, record in cells.items() if "error" not in record}
    if cells:
        yield _totals(cells)
        yield _steps(cells)
        yield from _not_there(cells)
        yield from _kernels(cells)


def relay_of(record: Record) -> tuple[str, Record]:
    """The relay whose steps a cell is about: with the prefix kept; in a cell without one, with 16 shared tokens."""
    name = "relay-kept" if record["prefix"] else "relay-16"
    return name, record["contenders"].get(name, {})


def _totals(cells: dict[str, Record]) -> Table:
    title = "generate(): s in all / s to the first token; * fewer than 3 rounds, + measured in another run than stock"
    table = Table("", *(Column(name, justify="right") for name in NAMES), title=title, padding=0, box=SIMPLE_HEAD)
    for key, record in cells.items():
        entries = record["contenders"]
        run = entries.get("stock", {}).get("run")
        table.add_row(key, *(_total(entries.get(name, {}), run) for name in NAMES))
    return table


def _total(entry: Record, run: int | None) -> str:
    if "total_s" not in entry:
        return next((name.replace("_", " ") for name in ("does_not_fit", "failed", "left_out") if name in entry), "-")
    first = f"/{entry['first_token_s']:.3f}" if "first_token_s" in entry else ""
    marks = "*" * (entry["rounds"] < 3) + "+" * (run is not None and entry["run"] != run)
    return f"{entry['total_s']:.2f}{first}{marks}"


def _steps(cells: dict[str, Record]) -> Table:
    columns = (
        "relay ms",
        "floor ms",
        "x floor",
        "stock ms",
        "its floor ms",
        "idle",
        "KV GB",
        "stock's",
        "equal tokens",
    )
    title = "a decode step, prefix kept (at P=0: 16 tokens, for a call that shares nothing is stock's)"
    table = Table("", *(Column(name, justify="right") for name in columns), title=title, box=SIMPLE_HEAD)
    for key, record in cells.items():
        _, relay = relay_of(record)
        step, stock = relay.get("step_s"), record["contenders"].get("stock", {}).get("step_s")
        idle, equal = relay.get("device", {}).get("idle_share"), relay.get("tokens", {}).get("equal_tokens")
        table.add_row(
            key,
            _number(step, 1e3),
            _number(record["floor_step_s"], 1e3),
            _number(step and step / record["floor_step_s"]),
            _number(stock, 1e3),
            _number(record["stock_floor_step_s"], 1e3),
            "-" if idle is None else f"{idle:.0%}",
            _number(relay.get("kv_bytes"), 1e-9),
            _number(relay.get("kv_bytes_stock"), 1e-9),
            "-" if equal is None else f"{equal:.0%}",
        )
    return table


def _number(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:.2f}"


def _not_there(cells: dict[str, Record]) -> Iterator[str]:
    """Why contenders have no figures, or relays did not relay."""
    reasons: dict[str, list[str]] = {}
    for key, record in cells.items():
        for name, entry in record["contenders"].items():
            for how in ("does_not_fit", "failed", "left_out", "ended_by"):
                if how in entry:
                    reasons.setdefault(f"{name}, {how.replace('_', ' ')}: {entry[how]}", []).append(key)
            if entry.get("relayed") is False:
                reasons.setdefault(f"{name} was left to stock: {entry['report']}", []).append(key)
            if "failed" in entry.get("device", {}):
                reasons.setdefault(f"{name}, not profiled: {entry['device']['failed']}", []).append(key)
    for why, keys in list(reasons.items())[:_MOST]:
        yield escape(f"e2e: {why[:200]} ({', '.join(keys[:3])}{f' and {len(keys) - 3} more' * (len(keys) > 3)})")


def _kernels(cells: dict[str, Record]) -> Iterator[str]:
    for key, record in cells.items():
        device = relay_of(record)[1].get("device", {})
        if "kernels_us" in device:
            longest = list(device["kernels_us"].items())[:_KERNELS]
            said = "; ".join(f"{us:.0f} us {name[:40]}" for name, us in longest)
            yield escape(f"{key}: a step of {device['step_span_us']:.0f} us, {device['launches']:.0f} launches: {said}")
