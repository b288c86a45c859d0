"""Timing: all contenders take turns within one run, so that what disturbs the machine disturbs them all."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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


def measure(
    bench: Bench,
    contenders: Mapping[str, Contender],
    enough: Callable[[list[Measurement], float], bool],
    on_call: Callable[[str], None],
) -> list[Measurement]:
    """Rounds of all contenders until `enough(measurements, seconds since the start)`.

    Every round has other own tokens and starts with another contender. `on_call` is called with the next contender.
    """
    names = list(contenders)
    measurements = {name: Measurement(name) for name in names}
    start = time.perf_counter()
    bench.generate(bench.model, bench.prompts[:1, :8])  # the first call of a process also loads code
    for turn in itertools.count():
        bench.draw(turn)
        tokens: dict[str, Tensor] = {}
        shift = turn % len(names)
        for name in [*names[shift:], *names[:shift]]:
            on_call(name)
            contender, measurement = contenders[name], measurements[name]
            call = contender.prepare(bench)
            began = time.perf_counter()
            tokens[name] = call()
            measurement.seconds.append(time.perf_counter() - began)
            if contender.twin is not None:
                measurement.report = contender.twin(bench).relay.last
        for name in names:
            if "stock" in tokens and contenders[name].tokens != "other":
                same = torch.equal(tokens[name], tokens["stock"])
                measurements[name].same_tokens = same and measurements[name].same_tokens is not False
        if enough(list(measurements.values()), time.perf_counter() - start):
            break
    return list(measurements.values())
