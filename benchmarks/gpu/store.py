"""The JSON: one record a cell, written as soon as it is there, so that a run can be cut short and taken up again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_SAME = ("chip", "versions", "commit", "source", "dry_run")  # what a file must agree on to be taken up again

Record = dict[str, Any]


class Store:
    """Records of cells by section.

    Args:
        path: the file.
        identity: what the results belong to; a file of another identity is started anew.
        fresh: start anew in any case.
    """

    def __init__(self, path: Path, identity: Record, fresh: bool = False) -> None:
        self.path = path
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.resumed = not fresh and bool(old) and all(old.get(name) == identity[name] for name in _SAME)
        self.content: Record = identity | {"sections": old["sections"] if self.resumed else {}}

    def section(self, name: str) -> Record:
        """`cells`, `left_out` and `seconds` of a section."""
        return self.content["sections"].setdefault(name, {"seconds": 0.0, "cells": {}, "left_out": {}})

    def cells(self, name: str) -> dict[str, Record]:
        """The records of a section, without those of cells that failed to run."""
        return {key: record for key, record in self.section(name)["cells"].items() if "error" not in record}

    def put(self, name: str, key: str, record: Record) -> None:
        """Add a record and write the file."""
        self.section(name)["left_out"].pop(key, None)
        self.section(name)["cells"][key] = record
        self.write()

    def leave_out(self, name: str, keys: list[str], why: str) -> None:
        """List cells that were not run."""
        self.section(name)["left_out"].update(dict.fromkeys(keys, why))
        self.write()

    def write(self) -> None:
        """Replace the file in one step."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)
