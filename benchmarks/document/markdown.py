"""Results, and what their tables are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"

NAMES = {
    "stock": "stock",
    "static-cache": "static cache",
    "continuous-batching": "continuous batching",
    "prefix-copied": "prefix copied for each row",
    "one-level": "relay_hf, sharing the first level only",
    "relay-cold": "**relay_hf, first call**",
    "relay-kept": "**relay_hf, prefix kept**",
    "relay-16": "**relay_hf, 16 shared tokens kept**",
    "floor": "each token once, with stock's loop",  # named token-once since these were measured
    "no-prefix": "no prefix at all",
}
BRIEF = ("stock", "static-cache", "prefix-copied", "relay-cold", "relay-kept")  # what the README has


@lru_cache
def result(name: str) -> dict[str, Any]:
    """A committed result by its file's name."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def source(name: str) -> str:
    """Where a result is, and what it was measured on."""
    found = result(name)
    hardware, versions = found["hardware"], found["versions"]
    threads = f"{hardware['threads']} thread{'s' if hardware['threads'] > 1 else ''}"
    on = found.get("chip") or f"{threads} on {hardware['cores']} cores of {hardware['cpu']}"
    packages = f"PyTorch {versions['torch']}, Transformers {versions['transformers']}"
    return f"[{name}.json](../benchmarks/results/{name}.json): {on}; {packages}.\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
