"""Measures candidates for the rows of the table of tiles: right first, then fast, each by the clock of workload K."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console

from relay_hf.kernels.triton import tuning as tiles
from relay_hf.kernels.triton.tuning import Tile

from . import tuning
from .context import Context
from .correctness import check
from .decode import our_call, time_calls
from .inputs import Inputs
from .machine import chip_name
from .store import Record
from .tuning import Outcome, Shape
from .workers import Lost, Workers
from .workload import Ceilings

_NOMINAL = Ceilings(bandwidth=4e12, matrix_rate=6e14)  # how many calls a graph takes depends on it, nothing else
_DTYPES = {2: torch.bfloat16, 4: torch.float32}
Times = dict[Tile, tuple[float, ...]]


class Tuner:
    """Tries the candidates for one row of the table.

    Args:
        context: device and clock, of the row's dtype.
        workers: processes that check and compile, made with `make_check`.
        deadline: of `time.monotonic`.
        tile: the row.
        largest: whether it takes the calls with any larger number of queries too.
    """

    def __init__(self, context: Context, workers: Workers, deadline: float, tile: Tile, largest: bool) -> None:
        self._context, self._workers, self._deadline = context, workers, deadline
        self._tile, self._largest = tile, largest
        self._shapes = tuning.shapes_of(tile, largest, context.dry_run)
        self._times: Times = {}

    def outcome(self) -> Outcome | None:
        """What was found; None if the time was over before the row itself was timed.

        Raises:
            RuntimeError: the row itself is wrong, or does not run.
        """
        dry_run = self._context.dry_run
        self._try(tuning.first_candidates(self._tile, dry_run))
        if self._tile not in self._times:
            return None
        self._try(tuning.second_candidates(self._best(), dry_run))
        best, tried = self._best(), len(self._times)
        if best != self._tile:
            # Once more, and only these two: a difference must show twice.
            self._times = {each: self._time(each) for each in (self._tile, best)}
            best = self._best()
        return Outcome(self._tile, self._shapes, best, self._times[best], self._times[self._tile], tried)

    def _try(self, candidates: Sequence[Tile]) -> None:
        """Time the candidates that are right."""
        tasks = [(each, self._largest) for each in candidates if each not in self._times]
        for (candidate, _), record in list(self._workers.run(tasks, self._deadline)):
            passed = record.get("passed", False)
            if passed and time.monotonic() < self._deadline:
                self._times[candidate] = self._time(candidate)
            elif candidate == self._tile and not passed:
                raise RuntimeError(f"the table's own row is wrong or does not run: {record}")

    def _time(self, tile: Tile) -> tuple[float, ...]:
        with tiles.override(tile):
            return tuple(_seconds(self._context, shape) for shape in self._shapes)

    def _best(self) -> Tile:
        """The fastest; the row itself if none is faster by more than noise."""
        before = self._times[self._tile]
        ratios = {each: tuning.mean_ratio(seconds, before) for each, seconds in self._times.items()}
        best = min(ratios, key=ratios.__getitem__)
        return best if ratios[best] < 1 - tuning.GAIN else self._tile


def make_check(dry_run: bool) -> Callable[[Tile, bool], Record]:
    """What a worker does with a candidate: see that it is right, and with that compile what will be timed."""
    context = Context(dry_run)

    def check_tile(tile: Tile, largest: bool) -> Record:
        if context.broken_by is not None:
            raise Lost
        # The interpreter rounds to bfloat16 by cutting digits off.
        dtype = torch.float16 if dry_run and tile.itemsize == 2 else _DTYPES[tile.itemsize]
        records = []
        for shape in tuning.shapes_of(tile, largest, dry_run):
            case = tuning.case_of(shape, str(dtype).removeprefix("torch."))
            inputs = Inputs.draw(case, context.device, seed=0)
            try:
                with tiles.override(tile):
                    records.append(check(inputs, inputs.ours()))
            except Exception as error:  # a tile that needs more than the chip has is no candidate
                context.probe(tuning.settings(tile))
                return {"passed": False, "error": f"{type(error).__name__}: {error}"[:300]}
        return {"passed": all(record["passed"] for record in records), "checks": records}

    return check_tile


def run(arguments: argparse.Namespace) -> int:
    """Tune, print what was found, and write it if asked to; 1 if a row of the table is wrong or failed."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    deadline = time.monotonic() + 60 * arguments.minutes
    contexts = {itemsize: Context(arguments.dry_run, dtype) for itemsize, dtype in _DTYPES.items()}
    device = contexts[2].device
    chip, table = tiles.chip_of(device), tiles.table()
    rows = tuning.order(table, chip)
    console.print(f"{chip_name(device)}: {len(rows)} rows of the table for {chip}")
    workers = Workers(0 if arguments.dry_run else arguments.workers, make_check, arguments.dry_run)
    new: dict[Tile, Tile] = {}
    wrong: list[str] = []
    wanted = [row for row in rows if arguments.kernel in (None, row.kernel)]
    try:
        for row in wanted:
            context = contexts[row.itemsize]
            try:
                outcome = Tuner(context, workers, deadline, row, tuning.is_largest(row, rows)).outcome()
            except RuntimeError as error:
                wrong.append(tuning.name(row))
                console.print(f"{tuning.name(row)}: {error}", markup=False)
                continue
            finally:
                context.release()
            if outcome is None:
                break
            new[row] = outcome.row(chip, chip_name(device))
            console.print(f"{tuning.name(row)}: {tuning.settings(outcome.best)}: {new[row].reason}")
    finally:
        workers.stop()
    left = [name for name in map(tuning.name, wanted) if name not in {*map(tuning.name, new), *wrong}]
    if left:
        console.print(f"left out, out of time: {'; '.join(left)}")
    if wrong:
        console.print(f"wrong or failed, and left as they are: {'; '.join(wrong)}")
    if arguments.write:
        path = arguments.table or tiles.TABLE
        tuning.write(path, tuning.rewritten(table, chip, new))
        console.print(f"written: {path}")
    return 1 if wrong else 0


def _seconds(context: Context, shape: Shape) -> float:
    decode = shape.decode
    bytes_ = decode.bytes + 2 * (shape.length - 1) * decode.query_bytes
    least = max(decode.floor(_NOMINAL)[0], shape.length * decode.flop / _NOMINAL.matrix_rate)
    return time_calls(context, bytes_, least, lambda: our_call(context.arena, decode, context.device, shape.length))
