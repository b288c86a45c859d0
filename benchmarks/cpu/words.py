"""A named workload in a line of words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay_hf.cli.benchmark.table import in_words

_ANSWERS = (("num_return_sequences", "samples"), ("num_beams", "beams"))


def describe(workload: Mapping[str, Any]) -> str:
    """A workload, as its record has it, in a line."""
    rows, own = workload["rows"], workload["own"]
    shared = []
    for tokens, groups in [(workload["prefix"], 1), *workload.get("later", ())]:
        if rows == groups:  # what a single prompt starts with is shared by its samples or beams
            own += tokens
        elif tokens:
            shared.append(f"{tokens:,} shared" + (f" by {rows // groups}" if groups > 1 else ""))
    options, model = workload.get("options", {}), workload["model"]
    answers = "".join(f", {options[name]} {each} each" for name, each in _ANSWERS if name in options)
    text = in_words(rows, shared, f"{own:,}", workload["new"], answers)
    return f"{text}, {model['name']}" if "name" in model else text
