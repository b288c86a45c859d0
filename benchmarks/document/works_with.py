"""The box "Works with": versions, devices and model types, from the sources that tests hold."""

from __future__ import annotations

import tomllib
from pathlib import Path

from relay_hf.model import tested

from . import model_types
from .markdown import table

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def works_with() -> str:
    """A table of one row for each thing that a reader has and relay_hf needs."""
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    bounds = dict(line.split(">=", 1) for line in project["dependencies"] if ">=" in line)
    lowest, below = bounds["transformers"].split(",<")
    *others, newest = tested.TRANSFORMERS
    types = model_types.counted()
    rows = [
        ("Python", f"{project['requires-python'].removeprefix('>=')} or later"),
        ("Transformers", f"{lowest} to below {below}; tested with {', '.join(others)} and {newest}"),
        ("PyTorch", f"{bounds['torch']} or later"),
        ("Models", f"{types.relayed} of {types.all} causal model types; the others run as stock does"),
        ("Relayed by default on", ", ".join(tested.RELAYED_BY_DEFAULT)),
        ("Left to stock by default on", ", ".join(tested.STOCK_BY_DEFAULT)),
    ]
    return table(["Works with", ""], [(f"**{name}**", what) for name, what in rows])


TABLES = {"works-with": works_with}
