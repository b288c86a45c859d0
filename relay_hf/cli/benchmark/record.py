"""The JSON record of a run: every round of every contender, with the versions and the hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..console import about, print_json
from ..environment import environment
from .contenders import Contender
from .measure import Measurement
from .workload import Workload

Record = dict[str, Any]


def workload_record(name: str, workload: Workload, measurements: list[Measurement]) -> Record:
    """All rounds of a workload."""
    contenders = [asdict(measurement) | {"median": measurement.median} for measurement in measurements]
    return {"name": name, "workload": asdict(workload), "contenders": contenders}


def result(**content: Any) -> Record:
    """The record of a run: versions and hardware, then `content`."""
    return environment() | content


def write_json(path: Path, content: Record) -> None:
    """Write `content` to a file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def hand_out(content: Record, as_json: bool, to: Path | None) -> None:
    """Print a result as JSON and write it to a file, if either is asked for."""
    if as_json:
        print_json(content)
    if to is not None:
        with about("--output", "Give a file that you may write to.", OSError):
            write_json(to, content)


def same_as_stock(record: Record, contenders: Mapping[str, Contender]) -> dict[str, bool]:
    """For each contender whose tokens must be stock's, whether they were; without those that were not compared."""
    return {
        each["contender"]: each["same_tokens"]
        for each in record["contenders"]
        if contenders[each["contender"]].tokens == "exact" and each["same_tokens"] is not None
    }
