"""Tables of what was measured on GPUs."""

from __future__ import annotations

import itertools
from typing import Any

from .markdown import BRIEF, NAMES, result, source, table

_GENERATE, _OPERATOR = "gpu_nvidia_h200_e2e", "gpu_nvidia_h200"


def generate() -> str:
    """Seconds of each contender of a generate() call."""
    cells = _cells(_GENERATE, "e2e")
    rows = [
        [label, *(_seconds(record["contenders"].get(contender, {})) for record in cells.values())]
        for contender, label in NAMES.items()
        if any(contender in record["contenders"] for record in cells.values())
    ]
    head = ["seconds; rows x prefix", *(f"{record['rows']} x {record['prefix']:,}" for record in cells.values())]
    return table(head, rows) + "\n" + source(_GENERATE)


def brief() -> str:
    """Seconds of the main contenders on 32 rows that share 2,048 tokens."""
    found = next(each for each in _cells(_GENERATE, "e2e").values() if (each["rows"], each["prefix"]) == (32, 2048))
    rows = [[NAMES[name], _seconds(found["contenders"][name])] for name in BRIEF if name in found["contenders"]]
    return table(["", "seconds"], rows)


def steps() -> str:
    """Milliseconds of a decode step, beside what its bytes take."""
    rows = []
    for record in _cells(_GENERATE, "e2e").values():
        for contender in ("stock", "static-cache", "relay-kept", "relay-16"):
            step = record["contenders"].get(contender, {}).get("step_s")
            if step is not None:
                floor = record["stock_floor_step_s" if contender in ("stock", "static-cache") else "floor_step_s"]
                shape = [str(record["rows"]), f"{record['prefix']:,}", NAMES[contender]]
                rows.append([*shape, f"{step * 1e3:.1f}", f"{floor * 1e3:.1f}", f"{step / floor:.1f}"])
    head = ["rows", "shared", "", "a step, ms", "its bytes, ms", "times"]
    return table(head, rows) + "\n" + source(_GENERATE)


def operator() -> str:
    """How much faster the operator is than flash attention over keys that are stored for each row."""
    found = _cells(_OPERATOR, "operator").values()
    tables = []
    for heads, kv_heads in sorted({(record["heads"], record["kv_heads"]) for record in found}):
        cells = {(r["batch"], r["prefix"]): r for r in found if (r["heads"], r["kv_heads"]) == (heads, kv_heads)}
        batches, prefixes = (sorted({shape[i] for shape in cells}) for i in range(2))
        speed = {shape: _over_flash(cells.get(shape)) for shape in itertools.product(batches, prefixes)}
        lines = [[str(batch), *(speed[batch, prefix] for prefix in prefixes)] for batch in batches]
        tables.append(
            f"{heads} query and {kv_heads} KV heads:\n\n" + table(["rows", *map(_thousands, prefixes)], lines)
        )
    return "\n".join(tables) + "\n" + source(_OPERATOR)


def gate() -> str:
    """What was saved beside what the cost model expected."""
    rows = []
    for record in _cells(_OPERATOR, "gate").values():
        times = [f"{record['seconds'][name]:.3f}" for name in ("stock", "relay-cold", "relay-kept")]
        gains = [
            f"{record['gain'][name]:.3f} / {record['predicted_gain'][name]:.3f}"
            for name in ("relay-cold", "relay-kept")
        ]
        rows.append([str(record["rows"]), _thousands(record["prefix"]), *times, *gains])
    head = ["rows", "shared", "stock, s", "first call, s", "prefix kept, s", "saved / expected, first", "kept"]
    return table(head, rows) + "\n" + source(_OPERATOR)


def _cells(name: str, section: str) -> dict[str, Any]:
    cells = result(name)["sections"][section]["cells"]
    return dict(sorted(cells.items(), key=lambda item: (-item[1].get("rows", 0), item[1]["prefix"])))


def _seconds(entry: dict[str, Any]) -> str:
    if "does_not_fit" in entry:
        return "does not fit"
    return "" if "total_s" not in entry else f"{entry['total_s']:.2f}" + "*" * (entry["rounds"] < 3)


def _over_flash(record: dict[str, Any] | None) -> str:
    if record is None or record["flash_us"] is None:
        return "-"
    return f"{record['flash_us'] / record['ours_us']:.1f}x"


def _thousands(number: int) -> str:
    return f"{number:,}"


TABLES = {"brief-gpu": brief, "gpu-generate": generate, "gpu-steps": steps, "gpu-operator": operator, "gpu-gate": gate}
