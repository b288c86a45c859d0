"""`relay-hf bench`: the workloads that claims name, all contenders in one run."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from . import models, results
from .console import REAL_MODEL, about, examples, output, progress
from .options import Json, Model

if TYPE_CHECKING:
    from relay_hf.bench.report import Record
    from relay_hf.bench.workloads import Workload

_SHAPE = "The workload's numbers, changed"
_FILES = "What is written"


@examples(
    ("what there is to choose from", "relay-hf bench --list"),
    ("two workloads, to a file and as a picture", "relay-hf bench C1 C2 --output result.json --plot result.png"),
    ("your numbers: 8 rows that share 2,000 tokens, 64 new ones", "relay-hf bench --rows 8 --prefix 2000 --new 64"),
    ("a model of the Hub", f"relay-hf bench --model {REAL_MODEL} --contenders stock,relay-cold,relay-kept"),
    ("the picture of a result that you have", "relay-hf bench --from result.json --plot result.svg"),
)
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="WORKLOAD", help="C1 if none is named; --list describes all.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Describe workloads and contenders, and leave.")] = False,
    model: Model = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Where it runs; without it, on a CUDA device if there is one.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Calls of each contender, of which the median is shown.")
    ] = 3,
    contenders: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Who is compared; without it, all that fit the workload.")
    ] = None,
    policy: Annotated[Literal["auto", "always", "off"], typer.Option(help="Of the patched model.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Torch's threads; without it, torch's choice.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Prompts.", rich_help_panel=_SHAPE)] = None,
    prefix: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Tokens that all prompts start with.", rich_help_panel=_SHAPE)
    ] = None,
    own: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens that each prompt ends with.", rich_help_panel=_SHAPE)
    ] = None,
    new: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens of each answer.", rich_help_panel=_SHAPE)
    ] = None,
    as_json: Json = False,
    to: Annotated[
        Path | None,
        typer.Option("--output", dir_okay=False, help="Write the JSON here, too: every round.", rich_help_panel=_FILES),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, metavar="FILE.png|.svg", help="Draw the result; needs matplotlib.", rich_help_panel=_FILES
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", dir_okay=False, help="Show an earlier result, run nothing.", rich_help_panel=_FILES),
    ] = None,
) -> None:
    """Time generate() on named workloads: stock, its alternatives, a patched model, and the floor of them all.

    Models have random weights and fixed seeds, prompts are random tokens, and the number of new tokens is forced, so
    the seconds are comparable and the text is noise. Contenders take turns within one run. Exit code 1 if the tokens
    of a contender that must have stock's differ.
    """
    out = output(quiet=as_json)
    results.check_files(to, plot)
    if source is not None:
        content = results.read(source)
        for record in content["workloads"]:
            results.show(record, out)
    else:
        with progress().status("loading torch and Transformers ..."):
            from relay_hf.bench.report import result

            models.quiet()
            _set_threads(threads)
            device = _device(device)
        if list_all:
            results.list_all(out, as_json)
            return
        changes = {"rows": rows, "prefix": prefix, "own": own, "new": new}
        workloads = {name: _workload(name, changes, model) for name in names or ["C1"]}
        chosen = _contenders(contenders)
        records = []
        for name, workload in workloads.items():
            records.append(_run(name, workload, chosen, rounds, policy, device))
            results.show(records[-1], out)
        content = result(policy=policy, workloads=records)
        if device == "cuda":
            import torch

            content["hardware"]["gpu"] = torch.cuda.get_device_name()
    results.write(content, as_json, to, plot)

    from relay_hf.bench.report import differing

    if any(differing(record) for record in content["workloads"]):
        raise typer.Exit(1)


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _device(wanted: Literal["cpu", "cuda"] | None) -> Literal["cpu", "cuda"]:
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        advice = "torch sees no CUDA device; leave --device out. relay-hf doctor says what there is."
        raise typer.BadParameter(advice, param_hint="'--device'")
    return wanted or ("cuda" if there else "cpu")


def _workload(name: str, changes: dict[str, int | None], model: str | None) -> Workload:
    from relay_hf.bench.workloads import WORKLOADS, NamedModel

    if name not in WORKLOADS:
        advice = f"there is no {name!r}. Choose among {', '.join(WORKLOADS)}; --list describes them."
        raise typer.BadParameter(advice, param_hint="'WORKLOAD'")
    given: dict[str, Any] = {field: value for field, value in changes.items() if value is not None}
    if model is not None:
        with models.named():
            given["model"] = NamedModel.of(model)
    with about("--rows", f"Workload {name} has groups of prompts.", ValueError):
        return dataclasses.replace(WORKLOADS[name], **given)


def _contenders(text: str | None) -> list[str]:
    from relay_hf.bench.contenders import CONTENDERS

    chosen = [*CONTENDERS] if text is None else [name.strip() for name in text.split(",")]
    unknown = [name for name in chosen if name not in CONTENDERS]
    if unknown:
        advice = f"there is no {unknown[0]!r}. Choose among {', '.join(CONTENDERS)}, separated by commas."
        raise typer.BadParameter(advice, param_hint="'--contenders'")
    return chosen


def _run(name: str, workload: Workload, contenders: list[str], rounds: int, policy: str, device: str) -> Record:
    """The record of a workload."""
    from relay_hf.bench.contenders import CONTENDERS, Bench
    from relay_hf.bench.measure import Measurement, measure
    from relay_hf.bench.report import workload_record

    fitting = [each for each in contenders if CONTENDERS[each].fits(workload)]
    if not fitting:
        advice = f"none of {', '.join(contenders)} says anything of {name}; relay-hf bench --list has their conditions."
        raise typer.BadParameter(advice, param_hint="'--contenders'")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=progress(), transient=True) as bars:
        task, calls = bars.add_task(f"{name}: model", total=rounds * len(fitting)), itertools.count()
        with models.named():
            model = workload.model.build().to(device)
        compared = Bench(workload, policy, model)

        def on_call(contender: str) -> None:
            bars.update(task, description=f"{name}: {contender}", completed=next(calls))

        def enough(measurements: list[Measurement], _: float) -> bool:
            return len(measurements[0].seconds) >= rounds

        return workload_record(name, workload, measure(compared, fitting, enough, on_call))
