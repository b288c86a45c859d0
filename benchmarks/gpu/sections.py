"""The sections in their order, and how one cell of any of them is run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import ceilings, correctness, decode, gate, sanitizer
from .context import FATAL, Context, LeftOut
from .store import Record


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        cells: what is to be run by key, the most important first; of a dry run if so asked.
        run: one of them.
        share: of the time that is given for everything.
        parallel: cells time nothing and may run side by side, in workers.
        warm: what workers run for each cell ahead of `run`, so that this process finds everything compiled.
    """

    cells: Callable[[bool], dict[str, Any]]
    run: Callable[[Context, Any], Record]
    share: float
    parallel: bool = False
    warm: Callable[[Context, Any], Record] | None = None


SECTIONS = {
    "ceilings": Section(ceilings.cells, ceilings.run, share=0.03),
    "correctness": Section(correctness.cells, correctness.run, share=0.27, parallel=True),
    "sanitizer": Section(sanitizer.cells, sanitizer.run, share=0.10, parallel=True),
    "operator": Section(decode.cells, decode.run, share=0.42, warm=decode.warm),
    "gate": Section(gate.cells, gate.run, share=0.18),
}


class Attempts:
    """Runs cells of one context and tells a cell that fails from a device that does."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._broken_by: str | None = None

    def __call__(self, name: str, key: str, warm: bool = False) -> Record:
        """The record of a cell: its own, or `error`, or `left_out` with the reason."""
        if self._broken_by is not None:
            return {"left_out": f"the device refuses calls since the cell {self._broken_by}"}
        section = SECTIONS[name]
        try:
            cell = section.cells(self.context.dry_run)[key]
            return (section.warm if warm and section.warm else section.run)(self.context, cell)
        except LeftOut as reason:
            return {"left_out": str(reason)}
        except Exception as error:  # a run goes on: what failed is in the file and in the summary
            if any(sign in str(error) for sign in FATAL):
                self._broken_by = key
            lines = traceback.format_exception_only(type(error), error)
            return {
                "error": "".join(lines).strip()[:1000],
                "where": "".join(traceback.format_tb(error.__traceback__)[-3:]),
            }
