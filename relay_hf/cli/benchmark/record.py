"""The JSON record of a run: every round of every contender, with the versions and the hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..console import about, print_json, progress
from ..environment import environment
from ..output_file import write_output
from .contenders import Contender
from .measure import Measurement
from .workload import Workload

Record = dict[str, Any]


def workload_record(name: str, workload: Workload, measurements: list[Measurement]) -> Record:
    """All rounds of a workload."""
    contenders = [asdict(measurement) | {"median": measurement.median} for measurement in measurements]
    return {"name": name, "workload": asdict(workload), "contenders": contenders}


def result(interrupted: bool = False, **content: Any) -> Record:
    """The record of a run: versions and hardware, whether Ctrl-C cut it short, then `content`."""
    return environment() | {"interrupted": interrupted} | content


def write_json(path: Path, content: Record) -> None:
    """Write `content` to a file, whose folder exists; an old file is replaced as a whole."""
    text = json.dumps(content, indent=2) + "\n"
    write_output(path, lambda to: to.write_text(text, encoding="utf-8"))


def hand_out(content: Record, as_json: bool, to: Path | None) -> None:
    """Print a result as JSON and write it to a file, if either is asked for."""
    if as_json:
        print_json(content)
    if to is not None:
        with about("--output", "The result was not written.", OSError):
            write_json(to, content)


def exit_code(interrupted: bool, same: bool = True) -> int:
    """Of a run: 130 after Ctrl-C, which is said, and 1 if tokens that must be the `same` as stock's are not."""
    if interrupted:
        progress().print("Interrupted: the result has the rounds that were finished.", highlight=False)
        return 130
    return 0 if same else 1


def same_as_stock(record: Record, contenders: Mapping[str, Contender]) -> dict[str, bool]:
    """For each contender whose tokens must be stock's, whether they were; without those that were not compared."""
    return {
        each["contender"]: each["same_tokens"]
        for each in record["contenders"]
        if contenders[each["contender"]].tokens == "exact" and each["same_tokens"] is not None
    }
