"""Timing: all contenders take turns within one run, so that what disturbs the machine disturbs them all."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from relay_hf import RelayReport

from .bench import Bench
from .contenders import Contender


@dataclass
class Measurement:
    """A contender's seconds by round, whether its tokens were stock's (None: not compared), the relay's last report."""

    contender: str
    seconds: list[float] = field(default_factory=list)
    same_tokens: bool | None = None
    report: RelayReport | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while contenders took turns. `measurements`: of the rounds that were finished, at least one."""

    def __init__(self, measurements: list[Measurement]) -> None:
        super().__init__()
        self.measurements = measurements


def measure(
    bench: Bench,
    contenders: Mapping[str, Contender],
    enough: Callable[[list[Measurement], float], bool],
    on_call: Callable[[str], None],
) -> list[Measurement]:
    """Rounds of all contenders until `enough(measurements, seconds since the start)`.

    Every round has other own tokens and starts with another contender. `on_call` is called with the next contender.

    Raises:
        Interrupted: Ctrl-C; the error has the rounds that were finished. Before the first it is a KeyboardInterrupt.
    """
    measurements = [Measurement(name) for name in contenders]
    start = time.perf_counter()
    try:
        bench.generate(bench.model, bench.prompts[:1, -8:])  # the first call of a process also loads code
        for turn in itertools.count():
            bench.draw(turn)
            measurements = _round(bench, contenders, measurements, turn, on_call)
            if enough(measurements, time.perf_counter() - start):
                break
    except KeyboardInterrupt:
        if not measurements[0].seconds:
            raise
        raise Interrupted(measurements) from None
    return measurements


def _round(
    bench: Bench,
    contenders: Mapping[str, Contender],
    before: list[Measurement],
    turn: int,
    on_call: Callable[[str], None],
) -> list[Measurement]:
    """The measurements with another round, that of number `turn`; those of `before` stay as they are."""
    tokens: dict[str, Tensor] = {}
    found: dict[str, Measurement] = {}
    shift = turn % len(before)
    for measurement in [*before[shift:], *before[:shift]]:
        name = measurement.contender
        on_call(name)
        contender = contenders[name]
        call = contender.prepare(bench)
        began = time.perf_counter()
        tokens[name] = call()
        seconds = [*measurement.seconds, time.perf_counter() - began]
        report = None if contender.twin is None else contender.twin(bench).relay.last
        found[name] = replace(measurement, seconds=seconds, report=report)
    for name, measurement in found.items():
        if "stock" in tokens and contenders[name].tokens != "other":
            same = torch.equal(tokens[name], tokens["stock"])
            measurement.same_tokens = same and measurement.same_tokens is not False
    return [found[measurement.contender] for measurement in before]
