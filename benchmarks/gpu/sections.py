"""The sections in their order, and how one cell of any of them is run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import ceilings, correctness, decode, e2e, e2e_cells, gate, generate, sanitizer
from .context import Context, LeftOut
from .store import Record


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        cells: what is to be run by key, the most important first; of a dry run if so asked.
        run: one of them.
        share: of the time that is given for everything.
        parallel: cells time nothing and may run side by side, in workers.
        alone: those of them that want the device for themselves: they run in a worker too, one by one, behind all
            others.
        ahead: what workers do before the first cell, by the cell's key or another, so that this process finds
            everything compiled.
        done: whether nothing is left to do for a cell, of which the file has this record, or none.
    """

    cells: Callable[[bool], dict[str, Any]]
    run: Callable[[Context, Any], Record]
    share: float
    parallel: bool = False
    alone: frozenset[str] = frozenset()
    ahead: Callable[[bool], dict[str, Callable[[Context], Record]]] = lambda dry_run: {}
    done: Callable[[Context, Any, Record | None], bool] = lambda context, cell, record: record is not None


SECTIONS = {
    "ceilings": Section(ceilings.cells, ceilings.run, share=0.03),
    "correctness": Section(correctness.cells, correctness.run, share=0.27, parallel=True),
    "generate": Section(generate.cells, generate.run, share=0.20, parallel=True, alone=generate.ALONE),
    "sanitizer": Section(sanitizer.cells, sanitizer.run, share=0.10, parallel=True),
    "operator": Section(decode.cells, decode.run, share=0.42, ahead=decode.ahead),
    "gate": Section(gate.cells, gate.run, share=0.18),
    "e2e": Section(e2e_cells.cells, e2e.run, share=0.60, done=e2e.done),
}


class Attempts:
    """Runs cells of one context and tells a cell that fails from a device that does."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, name: str, key: str, ahead: bool = False) -> Record:
        """The record of a cell: its own, or `error`, or `left_out` with the reason."""
        if self.context.broken_by is not None:
            return {"left_out": f"the device refuses calls since {self.context.broken_by}"}
        section, dry_run = SECTIONS[name], self.context.dry_run
        try:
            if ahead:
                return section.ahead(dry_run)[key](self.context)
            return section.run(self.context, section.cells(dry_run)[key])
        except LeftOut as reason:
            return {"left_out": str(reason)}
        except Exception as error:  # a run goes on: what failed is in the file and in the summary
            self.context.probe(key)
            lines = traceback.format_exception_only(type(error), error)
            return {
                "error": "".join(lines).strip()[:1000],
                "where": "".join(traceback.format_tb(error.__traceback__)[-3:]),
            }
