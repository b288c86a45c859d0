"""One run: the model is built, and its contenders take turns under a progress bar."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel

from .. import models
from ..console import about, progress
from .bench import Bench
from .contenders import CannotRun, Contender
from .measure import Measurement, measure
from .record import Record, workload_record
from .workload import Workload


def run(
    name: str,
    workload: Workload,
    contenders: Mapping[str, Contender],
    rounds: int,
    device: str,
    bench_of: Callable[[PreTrainedModel], Bench],
) -> Record:
    """The record of `rounds` rounds.

    Args:
        name: of the workload, for the progress bar and the record.
        workload: what is timed.
        contenders: who takes turns, by name.
        rounds: calls of each contender.
        device: where the model goes.
        bench_of: makes a bench of the stock model that was built.

    Raises:
        typer.BadParameter: there is no such model, or a contender can't run it.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=progress(), transient=True) as bars:
        task, calls = bars.add_task(f"{name}: model", total=rounds * len(contenders)), itertools.count()
        with models.named():
            model = workload.model.build().to(device)

        def on_call(contender: str) -> None:
            bars.update(task, description=f"{name}: {contender}", completed=next(calls))

        def enough(measurements: list[Measurement], _: float) -> bool:
            return len(measurements[0].seconds) >= rounds

        with about("--contenders", "Leave it out.", CannotRun):
            return workload_record(name, workload, measure(bench_of(model), contenders, enough, on_call))
