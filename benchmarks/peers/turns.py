"""Timing: the engines of a workload take turns within one run, each in its process, and one computes at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.cpu.workloads import NamedWorkload

from .contenders import Contender, Mode
from .engines import Setup
from .jobs import Job
from .process import EngineFailed, EngineProcess
from .workloads import job_of

Starter = Callable[[str, str, Setup, Path], EngineProcess]


@dataclass
class Timed:
    """A contender in a mode: seconds by round, and how many of its new tokens were stock's in float32.

    Attributes:
        contender: its name.
        mode: what is kept, and whether there is a prefix.
        seconds: by round.
        equal: tokens at a place where stock has the same, of all rounds.
        compared: tokens that were compared; 0: none could be.
    """

    contender: str
    mode: Mode
    seconds: list[float] = field(default_factory=list)
    equal: int = 0
    compared: int = 0


@dataclass
class Found:
    """What a workload gave: the figures, what engines say of themselves, and why others are absent."""

    timed: list[Timed]
    about: dict[str, dict]
    absent: dict[str, str]


def take_turns(
    workload: NamedWorkload,
    contenders: Mapping[str, Contender],
    rounds: int,
    threads: int,
    on_turn: Callable[[str], None],
    start: Starter = EngineProcess,
) -> Found:
    """Time `rounds` calls of each contender in each of its modes. Every round has other own tokens.

    Args:
        workload: what they are asked for.
        contenders: who is asked.
        rounds: calls of each.
        threads: of each engine.
        on_turn: is called with a line that says what is done next.
        start: starts an engine.
    """
    found = Found([], {}, {})
    with tempfile.TemporaryDirectory(prefix="relay-hf-peers-") as folder, contextlib.ExitStack() as stack:
        on_turn("writing the weights")
        _write_weights(workload, Path(folder))
        engines = {}
        for name, contender in contenders.items():
            on_turn(f"loading {name}")
            log = Path(folder) / f"{name}.log"
            with _absent_if_it_fails(name, found):
                setup = _setup(workload, contender, folder, threads)
                engines[name] = start(contender.environment, contender.engine, setup, log)
                stack.callback(engines[name].close)
                engines[name].answer(job_of(workload).without_prefix(), None)  # the first call also loads code
        found.timed = [Timed(name, mode) for name in engines for mode in contenders[name].modes]
        for turn in range(rounds):
            _round(workload, engines, found, turn, on_turn)
        for name in {timed.contender: None for timed in found.timed}:
            found.about[name] = engines[name].about()
    return found


def _round(
    workload: NamedWorkload,
    engines: Mapping[str, EngineProcess],
    found: Found,
    turn: int,
    on_turn: Callable[[str], None],
) -> None:
    """A call of each, another one first in every round."""
    job, before = job_of(workload, turn), dataclasses.replace(job_of(workload, -1), new=1)
    jobs: dict[Mode, tuple[Job, Job | None]] = {
        "cold": (job, None),
        "kept": (job, before),
        "own": (job.without_prefix(), None),
    }
    tokens: dict[tuple[str, Mode], list[list[int]]] = {}
    shift = turn % max(1, len(found.timed))
    for timed in [*found.timed[shift:], *found.timed[:shift]]:
        if timed.contender in found.absent:
            continue
        on_turn(f"round {turn + 1}: {timed.contender}, {timed.mode}")
        with _absent_if_it_fails(timed.contender, found):
            seconds, answer = engines[timed.contender].answer(*jobs[timed.mode])
            timed.seconds.append(seconds)
            tokens[timed.contender, timed.mode] = answer
    found.timed = [timed for timed in found.timed if timed.contender not in found.absent]
    for timed in found.timed if not job.top_k else ():
        stock = tokens.get(("stock", "own" if timed.mode == "own" else "cold"))
        if stock is not None:
            pairs = list(itertools.chain.from_iterable(map(zip, tokens[timed.contender, timed.mode], stock)))
            timed.equal += sum(ours == theirs for ours, theirs in pairs)
            timed.compared += len(pairs)


@contextlib.contextmanager
def _absent_if_it_fails(name: str, found: Found) -> Iterator[None]:
    try:
        yield
    except EngineFailed as error:
        found.absent[name] = str(error)


def _write_weights(workload: NamedWorkload, folder: Path) -> None:
    weights = workload.model.build().state_dict()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "weights.safetensors")


def _setup(workload: NamedWorkload, contender: Contender, folder: str, threads: int) -> Setup:
    job = job_of(workload)
    shape = dataclasses.asdict(workload.model)
    return Setup(folder, shape, threads, job.rows, job.cells, dict(contender.options))
