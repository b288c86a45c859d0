"""Goals of generate() end to end. Numbers in, numbers out: nothing here touches a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .e2e_cells import ONE_ROW
from .store import Record
from .verdicts import NOISE, Goal, Verdict

_RELAYS = ("relay-kept", "relay-cold")
_TIMES = (("G1", "stock", 5.0), ("G1", "prefix-copied", 3.0), ("G1", "continuous-batching", 1.5))
_TIMES_G2 = ("G2", "prefix-copied", 2.5)
_FREE = ((2048, 0.92), (8192, 0.77))  # prefix, and the least share of the decode speed without one
_FLOOR, _FIRST_TOKEN, _IDLE = 1.4, 1.15, 0.10
Cells = Mapping[str, Record]


def figures(sections: Mapping[str, Record]) -> list[Verdict]:
    """What is fast or slow, of a run's sections."""
    records = sections.get("e2e", {"cells": {}})["cells"]
    cells = {key: record for key, record in records.items() if "error" not in record}
    return [
        *(_times(cells, *each) for each in (*_TIMES, _TIMES_G2)),
        _judge(
            f"B=32, prefix kept: a decode step at most {_FLOOR:g}x its floor",
            1 / _FLOOR,
            _values(cells, lambda record: record["floor_step_s"] / _of(record, "relay-kept", "step_s"), rows=32),
        ),
        *(_free(cells, *each) for each in _FREE),
        _first_token(cells),
        _judge(
            "one row, prefix kept: decoding not slower than stock",
            NOISE,
            _values(cells, lambda record: _of(record, "stock", "step_s") / _of(record, "relay-kept", "step_s"), rows=1),
        ),
        _judge(
            f"B=32, prefix kept: the device idles under {_IDLE:.0%} of a decode step",
            1 - _IDLE,
            _values(cells, lambda record: 1 - _of(record, "relay-kept", "device")["idle_share"], rows=32),
        ),
    ]


def _times(cells: Cells, workload: str, baseline: str, asked: float) -> Verdict:
    """All tokens at prefix 2048, against a baseline; with the prefix kept, and with nothing kept."""
    found: dict[str, float] = {}
    for relay in _RELAYS:

        def ratio(record: Record, relay: str = relay) -> float:
            return _of(record, baseline, "total_s") / _of(record, relay, "total_s")

        values = _values(cells, ratio, workload=workload, rows=32, prefix=2048)
        found |= {f"{key}, {relay}": value for key, value in values.items()}
    return _judge(f"{workload} B=32 P=2048, prefix kept or not: {asked:g}x {baseline}", asked, found)


def _free(cells: Cells, prefix: int, asked: float) -> Verdict:
    """The system prompt is free: the decode speed with a long prefix, over that with the least one."""
    found = {}
    for key, record in cells.items():
        (base,) = _cells(cells, workload=record["workload"], rows=record["rows"], prefix=0) or [{}]
        step, free = _of(record, "relay-kept", "step_s"), _of(base, "relay-16", "step_s")
        if (record["prefix"], record["rows"]) == (prefix, 32) and step and free:
            found[key] = free / step
    return _judge(f"B=32: tokens/s in decoding at prefix {prefix}, over those at 16", asked, found)


def _first_token(cells: Cells) -> Verdict:
    """A row whose long prefix is kept, beside the row without it."""
    (base,) = _cells(cells, workload=ONE_ROW, prefix=0) or [{}]
    # What a streamer sees, where that was measured; else when a call for one token returns.
    figure = "first_shown_s" if _of(base, "stock", "first_shown_s") else "first_token_s"
    without = _of(base, "stock", figure)

    def ratio(record: Record) -> float:
        return without / _of(record, "relay-kept", figure)

    found = _values(cells, ratio, workload=ONE_ROW, prefix=4096)
    name = f"one row, prefix 4096 kept: time to first token at most {_FIRST_TOKEN:g}x that of no prefix"
    return _judge(name, 1 / _FIRST_TOKEN, found)


def _judge(name: str, asked: float, values: Mapping[str, float]) -> Verdict:
    goal = Goal(name, lambda _: True, lambda record: record["value"], round(asked, 3))
    return goal.judge({key: {"value": value} for key, value in values.items()})


def _values(cells: Cells, value: Callable[[Record], float], **fields: Any) -> dict[str, float]:
    """By key, of the cells that have such fields and all that `value` asks for."""

    def pairs() -> Iterator[tuple[str, float]]:
        for key, record in cells.items():
            if all(record[name] == wanted for name, wanted in fields.items()):
                try:
                    yield key, value(record)
                except (KeyError, TypeError):  # a contender that was not measured, or failed
                    continue

    return dict(pairs())


def _cells(cells: Cells, **fields: Any) -> list[Record]:
    return [each for each in cells.values() if all(each[name] == wanted for name, wanted in fields.items())]


def _of(record: Record, contender: str, figure: str) -> Any:
    """A figure of a contender; None where there is none."""
    return record.get("contenders", {}).get(contender, {}).get(figure)
