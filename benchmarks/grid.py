"""Never slower: calls of many shapes, under policy="auto", against stock."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .contenders import Bench
from .measure import Measurement, measure
from .workloads import C1_MODEL, Workload

PATCHED = ("relay-cold", "relay-kept")
LIMIT = 1.03  # of stock's seconds, in every cell
NOISE = 0.005  # standard error of a cell's ratio at which it is settled
ROWS, PREFIX, OWN, NEW = (1, 4, 16), (0, 64, 512), (8, 256), (1, 32)


@dataclass
class Cell:
    """A shape of call, and what was measured for it."""

    workload: Workload
    measurements: list[Measurement]

    def ratio(self, contender: str) -> tuple[float, float]:
        """The contender's seconds over stock's: the median of the rounds, and the standard error of that median."""
        seconds = {measurement.contender: measurement.seconds for measurement in self.measurements}
        ratios = [patched / stock for patched, stock in zip(seconds[contender], seconds["stock"], strict=True)]
        median = statistics.median(ratios)
        deviation = 1.4826 * statistics.median(abs(ratio - median) for ratio in ratios)
        return median, 1.2533 * deviation / math.sqrt(len(ratios))

    @property
    def worst(self) -> float:
        """The larger one of the two ratios."""
        return max(self.ratio(contender)[0] for contender in PATCHED)


def cells(prefixes: Sequence[int] = PREFIX) -> list[Workload]:
    """The shapes of the grid."""
    shapes = itertools.product(ROWS, prefixes, OWN, NEW)
    return [Workload(C1_MODEL, rows, prefix, own, new) for rows, prefix, own, new in shapes]


def run_cell(bench: Bench, cell_seconds: float, on_call: Callable[[str], None]) -> Cell:
    """Five rounds or more, until the noise is small or `cell_seconds` are over (then three will do)."""

    def enough(measurements: list[Measurement], elapsed: float) -> bool:
        rounds = len(measurements[0].seconds)
        noise = max(Cell(bench.workload, measurements).ratio(contender)[1] for contender in PATCHED)
        return (rounds >= 5 and noise < NOISE) or (rounds >= 3 and elapsed > cell_seconds)

    return Cell(bench.workload, measure(bench, ["stock", *PATCHED], enough, on_call))
