"""Runs of several workloads: their models are built, and contenders take turns under a progress bar."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel

from .. import models
from ..console import about, progress
from .bench import Bench
from .contenders import CannotRun, Contender
from .measure import Interrupted, Measurement, measure
from .record import Record, workload_record
from .workload import Workload


@dataclass(frozen=True)
class Job:
    """What is timed.

    Attributes:
        name: of the workload, for the progress bar and the record.
        workload: the prompts, and what they are put through.
        contenders: who takes turns, by name.
        bench_of: makes a bench of the stock model that was built.
    """

    name: str
    workload: Workload
    contenders: Mapping[str, Contender]
    bench_of: Callable[[PreTrainedModel], Bench]


def run(
    jobs: Sequence[Job], rounds: int, device: str, on_record: Callable[[Record], None]
) -> tuple[list[Record], bool]:
    """Time `rounds` calls of each contender of each job, job by job. Ctrl-C ends it, and finished rounds are kept.

    Args:
        jobs: what is timed.
        rounds: calls of each contender.
        device: where the models go.
        on_record: is called with each record as soon as it is there.

    Returns:
        The records, at least one, and whether Ctrl-C cut them short.

    Raises:
        typer.BadParameter: there is no such model, or a contender can't run it.
        KeyboardInterrupt: Ctrl-C before any round was finished.
    """
    records: list[Record] = []
    for job in jobs:
        interrupted = False
        try:
            measurements = _measured(job, rounds, device)
        except Interrupted as stopped:
            measurements, interrupted = stopped.measurements, True
        except KeyboardInterrupt:
            if not records:
                raise
            return records, True
        records.append(workload_record(job.name, job.workload, measurements))
        on_record(records[-1])
        if interrupted:
            return records, True
    return records, False


def _measured(job: Job, rounds: int, device: str) -> list[Measurement]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=progress(), transient=True) as bars:
        total, calls = rounds * len(job.contenders), itertools.count()
        task = bars.add_task(f"{job.name}: model", total=total)
        with models.named():
            model = job.workload.model.build().to(device)

        def on_call(contender: str) -> None:
            bars.update(task, description=f"{job.name}: {contender}", completed=next(calls))

        def enough(measurements: list[Measurement], _: float) -> bool:
            return len(measurements[0].seconds) >= rounds

        with about("--contenders", "Leave it out.", CannotRun):
            return measure(job.bench_of(model), job.contenders, enough, on_call)
