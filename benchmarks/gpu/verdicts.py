"""Goals, and whether the records meet them. Numbers in, numbers out: nothing here touches a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .cases import FACTOR
from .store import Record
from .workload import PAPER

_SLACK = 10.0  # us over the floor, where the floor is short
NOISE = 0.97  # of stock's speed, that passes as equal
_ERRORS = ", ".join(f"times {factor:g} in {dtype}" for dtype, factor in FACTOR.items())


@dataclass(frozen=True)
class Verdict:
    """A goal, whether it is met (None: nothing was measured for it), and what was found."""

    goal: str
    met: bool | None
    found: str


@dataclass(frozen=True)
class Goal:
    """What is asked of some cells.

    Attributes:
        name: in words.
        applies: whether a record is one of those cells.
        value: what is asked for in figures, larger being better.
        asked: the least value.
    """

    name: str
    applies: Callable[[Record], bool]
    value: Callable[[Record], float]
    asked: float

    def judge(self, records: Mapping[str, Record]) -> Verdict:
        """Over all records by key."""
        values = {key: self.value(record) for key, record in records.items() if self.applies(record)}
        if not values:
            return Verdict(self.name, None, "nothing measured")
        worst = min(values, key=values.__getitem__)
        met = sum(value >= self.asked for value in values.values())
        found = f"{met} of {len(values)} cells; least {values[worst]:.3f} for {self.asked:g} at {worst}"
        return Verdict(self.name, met == len(values), found)


def _by_memory(record: Record) -> bool:
    """B*G <= 128; or more queries, whose own KV outweighs the arithmetic: no matrix rate can be asked of those."""
    return record["stacked"] <= 128 or (record["bound"] == "memory" and record["prefix"] >= 2048)


def _by_arithmetic(record: Record) -> bool:
    return record["bound"] == "arithmetic" and record["stacked"] > 128 and record["prefix"] >= 2048


def _flashinfer_goal(record: Record) -> float:
    """How many times FlashInfer's speed is asked for."""
    if (record["heads"], record["kv_heads"]) == (32, 8) and record["batch"] <= 128:
        return 1.3
    return 1.0 if record["stacked"] <= 512 else 0.85


def _over_flash(record: Record) -> float:
    return record["flash_us"] / record["ours_us"]


def _times_flashinfer(asked: float, where: str) -> Goal:
    return Goal(
        f"{asked}x FlashInfer: {where}",
        lambda record: record["flashinfer_us"] is not None and _flashinfer_goal(record) == asked,
        lambda record: record["flashinfer_us"] / record["ours_us"],
        asked,
    )


def _is_paper(record: Record) -> bool:
    return all(record[name] == getattr(PAPER, name) for name in ("heads", "kv_heads", "batch", "prefix"))


OPERATOR = (
    Goal(
        "bound by memory, floor from 100 us: 0.90 of the floor",
        lambda record: _by_memory(record) and record["floor_us"] >= 100,
        lambda record: record["share_of_floor"],
        0.90,
    ),
    Goal(
        "bound by memory, floor 20 to 100 us: 0.80 of the floor",
        lambda record: _by_memory(record) and 20 <= record["floor_us"] < 100,
        lambda record: record["share_of_floor"],
        0.80,
    ),
    Goal(
        "bound by memory, floor below 20 us: (floor + 10 us) / ours",
        lambda record: _by_memory(record) and record["floor_us"] < 20,
        lambda record: (record["floor_us"] + _SLACK) / record["ours_us"],
        1.0,
    ),
    Goal(
        "bound by arithmetic, B*G > 128, P >= 2048: 0.60 of the matrix rate",
        _by_arithmetic,
        lambda record: record["share_of_matrix_rate"],
        0.60,
    ),
    Goal(
        "never slower than flash over concatenated KV", lambda record: record["flash_us"] is not None, _over_flash, 1.0
    ),
    _times_flashinfer(1.3, "32/8 heads, B <= 128"),
    _times_flashinfer(1.0, "elsewhere, B*G <= 512"),
    _times_flashinfer(0.85, "B*G > 512"),
    Goal(
        f"the paper's figure, {PAPER.key}: times re-reading",
        lambda record: record["flash_us"] is not None and _is_paper(record),
        _over_flash,
        14.5,
    ),
)


def gate(records: Mapping[str, Record]) -> list[Verdict]:
    """Where the gate relays, the relay is not slower; and how often it is right about which is faster."""
    speeds, right, total = {}, 0, 0
    for key, record in records.items():
        for name, predicted in record["predicted_gain"].items():
            if not record["relayed"][name]:
                continue  # a single row that nothing is kept for: there is nothing to choose
            total += 1
            right += (predicted > 0) == (record["gain"][name] > 0)
            if predicted > 0:
                speeds[f"{key} {name}"] = {"speed": record["seconds"]["stock"] / record["seconds"][name]}
    goal = Goal("where the gate relays: not slower than stock", lambda _: True, lambda record: record["speed"], NOISE)
    found = f"{right} of {total}"
    return [
        goal.judge(speeds),
        Verdict("the gate's choice is the faster one", right == total if total else None, found),
    ]


def passed(name: str, section: Record) -> Verdict:
    """Over checks that pass or fail; those that failed to run count as failed."""
    records = section["cells"]
    failed = [key for key, record in records.items() if not record.get("passed", False)]
    found = f"{len(records) - len(failed)} of {len(records)}, {len(section['left_out'])} left out"
    found += f"; failed: {', '.join(failed[:5])}" if failed else ""
    return Verdict(name, not failed if records else None, found)


def checks(sections: Mapping[str, Record]) -> list[Verdict]:
    """What is right or wrong, of a run's sections."""
    nothing: Record = {"cells": {}, "left_out": {}}
    return [
        passed(f"right: no further from float64 than stock, {_ERRORS}", sections.get("correctness", nothing)),
        passed("generate(): stock's tokens, relayed and replayed", sections.get("generate", nothing)),
        passed("the sanitizer finds nothing", sections.get("sanitizer", nothing)),
    ]


def figures(sections: Mapping[str, Record]) -> list[Verdict]:
    """What is fast or slow, of a run's sections."""

    def cells(name: str) -> dict[str, Record]:
        records = sections.get(name, {"cells": {}})["cells"]
        return {key: record for key, record in records.items() if "error" not in record}

    return [goal.judge(cells("operator")) for goal in OPERATOR] + gate(cells("gate"))
