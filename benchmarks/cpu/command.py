"""The command `python -m benchmarks.cpu`: the options of `relay-hf bench`, with named workloads, files and plots."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.named import app_of, workload_of
from relay_hf.cli import models
from relay_hf.cli.benchmark import arguments
from relay_hf.cli.benchmark.record import exit_code, hand_out, result
from relay_hf.cli.benchmark.run import Job, run
from relay_hf.cli.benchmark.timed_model import NamedModel
from relay_hf.cli.console import REAL_MODEL, examples, output, refuse
from relay_hf.cli.models import check_name
from relay_hf.cli.options import Json, Model

from . import results
from .bench import TreeBench
from .contenders import CONTENDERS
from .workloads import WORKLOADS, NamedWorkload

_COMMAND = "python -m benchmarks.cpu"


@examples(
    ("what there is to choose from", f"{_COMMAND} --list"),
    ("two workloads, to a file and as a picture", f"{_COMMAND} C1 C2 --output result.json --plot result.png"),
    ("C1 with other numbers", f"{_COMMAND} C1 --rows 8 --prefix 2000 --new 64"),
    ("a model of the Hub in its place", f"{_COMMAND} --model {REAL_MODEL} --contenders stock,token-once,relay-cold"),
    ("the picture of a result that you have", f"{_COMMAND} --from result.json --plot result.svg"),
)
def bench(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="WORKLOAD", help="C1 if none is named; --list describes all.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Describe workloads and contenders, and leave.")] = False,
    model: Model = None,
    device: arguments.Device = None,
    rounds: arguments.Rounds = 3,
    contenders: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Who is compared; without it, all that fit the workload.")
    ] = None,
    policy: arguments.Policy = "auto",
    threads: arguments.Threads = None,
    rows: Annotated[int | None, arguments.ROWS] = None,
    prefix: Annotated[int | None, arguments.PREFIX] = None,
    own: Annotated[int | None, arguments.OWN] = None,
    new: Annotated[int | None, arguments.NEW] = None,
    as_json: Json = False,
    to: arguments.Output = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            metavar="FILE.png|.svg",
            help="Draw the result; needs matplotlib.",
            rich_help_panel=arguments.FILES,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", dir_okay=False, help="Show an earlier result, run nothing.", rich_help_panel=arguments.FILES
        ),
    ] = None,
) -> None:
    """Time generate() on named workloads: stock, its alternatives, a patched model, and calls that do less.

    Models have random weights and fixed seeds, prompts are random tokens, and the number of new tokens is forced, so
    the seconds are comparable and the text is noise. Contenders take turns within one run. Exit code 1 if the tokens
    of a contender that must have stock's differ.
    """
    out = output(quiet=as_json)
    every = {str(parameter.name) for parameter in context.command.params}
    if list_all:
        refuse(context, every - {"list_all", "as_json"}, "--list only describes what there is")
        results.list_all(out, as_json)
        return
    if source is not None:
        shown = {"source", "as_json", "to", "plot"}
        refuse(context, every - shown, "--from shows an earlier result and measures nothing")
    check_name(model)
    arguments.check_file("--output", to)
    arguments.check_file("--plot", plot)
    results.check_plot(plot)
    if source is not None:
        content, interrupted = results.read(source), False
        for record in content["workloads"]:
            results.show(record, out)
    else:
        models.quiet()
        arguments.set_threads(threads)
        place = arguments.device_of(device)
        changes = {"rows": rows, "prefix": prefix, "own": own, "new": new}
        workloads = {name: _workload(name, changes, model) for name in names or ["C1"]}
        chosen = arguments.contenders_of(contenders, CONTENDERS)
        jobs = [
            Job(name, workload, arguments.fitting(chosen, workload, name), partial(TreeBench, workload, policy))
            for name, workload in workloads.items()
        ]
        records, interrupted = run(jobs, rounds, place, lambda record: results.show(record, out))
        content = arguments.with_gpu(result(interrupted, policy=policy, workloads=records), place)
    hand_out(content, as_json, to)
    results.draw(content, plot)
    raise typer.Exit(exit_code(interrupted, results.all_same(content)))


def _workload(name: str, changes: dict[str, int | None], model: str | None) -> NamedWorkload:
    if model is None:
        return workload_of(WORKLOADS, name, changes)
    with models.named():
        named = NamedModel.of(model)
    return workload_of(WORKLOADS, name, changes, model=named)


app = app_of(bench)
