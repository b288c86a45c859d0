"""Tables of relay_hf beside other engines: seconds, what each does with the prefix, who is absent and why."""

from __future__ import annotations

from typing import Any

from benchmarks.cpu.words import describe
from benchmarks.peers.contenders import MODES
from benchmarks.peers.results import equal_tokens, seconds_of

from .markdown import RESULTS, result, source, table

_NAME = "peers"
_NOT_YET = "There is no result yet: `python -m benchmarks.peers --output benchmarks/results/peers.json` writes it.\n"
_GROUPS = {"float32": "In float32", "bfloat16": "In bfloat16", "quantized": "With quantized weights"}
_BRIEF = "C1"  # the workload that the README has


def brief() -> str:
    """Seconds of all contenders in float32 on C1."""
    if not _measured():
        return _NOT_YET
    found = result(_NAME)
    seconds = seconds_of(next(record for record in found["workloads"] if record["name"] == _BRIEF))
    rows = [
        [_label(each), *(f"{seconds[name, mode]:.2f}" if (name, mode) in seconds else "" for mode in MODES)]
        for name, each in _in_group(found, "float32").items()
    ]
    return table(["seconds", *_heads()], rows)


def tables() -> str:
    """What the workloads are, then for each kind of numbers seconds and equal tokens, then what engines do."""
    if not _measured():
        return _NOT_YET
    found = result(_NAME)
    records = {record["name"]: record for record in found["workloads"]}
    parts = [table(["workload", ""], [[name, describe(record["workload"])] for name, record in records.items()])]
    for numbers, heading in _GROUPS.items():
        contenders = _in_group(found, numbers)
        seconds = [
            [_label(each), *(_seconds(record, name) for record in records.values())]
            for name, each in contenders.items()
        ]
        tokens = [
            [_label(each), *(equal_tokens(record, name) for record in records.values())]
            for name, each in contenders.items()
        ]
        parts.append(f"{heading}, seconds: {' / '.join(_heads())}\n\n" + table(["", *records], seconds))
        parts.append("New tokens that are stock's in float32:\n\n" + table(["", *records], tokens))
    parts += [_what_they_do(found), _absent(found), source(_NAME)]
    return "\n".join(parts)


def _measured() -> bool:
    return (RESULTS / f"{_NAME}.json").exists()


def _heads() -> list[str]:
    return [text.partition(":")[0] for text in MODES.values()]


def _in_group(found: dict[str, Any], numbers: str) -> dict[str, Any]:
    """The contenders of a kind of numbers that were timed."""
    timed = {each["contender"] for record in found["workloads"] for each in record["timed"]}
    return {name: each for name, each in found["contenders"].items() if each["numbers"] == numbers and name in timed}


def _label(contender: dict[str, Any]) -> str:
    label = contender["label"]
    return f"**{label}**" if label.startswith("relay_hf") else label


def _seconds(record: dict[str, Any], name: str) -> str:
    """Seconds in each mode; a dash for one that was not timed."""
    seconds = seconds_of(record)
    cells = [f"{seconds[name, mode]:.2f}" if (name, mode) in seconds else "-" for mode in MODES]
    return " / ".join(cells) if any(cell != "-" for cell in cells) else ""


def _what_they_do(found: dict[str, Any]) -> str:
    """What each engine does with the prefix, its version and instructions; then how each contender was set."""
    about = {name: said for record in found["workloads"] for name, said in record["engines"].items()}
    engines: dict[str, list[str]] = {}
    for name, each in found["contenders"].items():
        if name in about:
            said = about[name]
            instructions = _listed(said.get("instructions", "not said"))
            engine = _label(each).split(",")[0].rpartition(" ")[0]
            engine += "**" if engine.startswith("**") else ""
            engines.setdefault(engine, [engine, each["prefix"], said["version"], instructions])
    settings = [[_label(each), each["settings"]] for name, each in found["contenders"].items() if name in about]
    whole = table(["engine", "the prefix is", "version", "instructions"], engines.values())
    return f"{whole}\n{table(['', 'settings'], settings)}"


def _absent(found: dict[str, Any]) -> str:
    """Who is not there: of all workloads, or of some."""
    lines = [f"- {label}: {reason}.\n" for label, reason in found["absent"].items()]
    for record in found["workloads"]:
        for name, reason in record["absent"].items():
            lines.append(f"- {found['contenders'][name]['label']}, in {record['name']}: {reason}.\n")
    return "Not there:\n\n" + "".join(lines) if lines else ""


def _listed(instructions: str) -> str:
    """llama.cpp puts bars between the names of instructions, which would end a cell."""
    return instructions.replace(" | ", ", ").replace(" = 1", "")


TABLES = {"peers": tables, "brief-peers": brief}
