"""The command `python -m benchmarks.peers`: workloads, contenders, threads and rounds, and a file for the result."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from benchmarks.cpu.workloads import NamedWorkload
from benchmarks.named import app_of, workload_of
from relay_hf.cli import models
from relay_hf.cli.benchmark import arguments
from relay_hf.cli.benchmark.record import Record, exit_code, hand_out, result
from relay_hf.cli.console import examples, output, progress, refuse
from relay_hf.cli.options import Json

from . import results
from .contenders import CONTENDERS, Contender
from .turns import take_turns
from .workloads import WORKLOADS

_COMMAND = "python -m benchmarks.peers"


@examples(
    ("what there is to choose from, and who can't be had", f"{_COMMAND} --list"),
    ("two workloads, to a file", f"{_COMMAND} C1 C5 --output result.json"),
    ("some contenders, on two threads", f"{_COMMAND} C1 --contenders relay,llamacpp --threads 2"),
    ("smaller numbers", f"{_COMMAND} C1 --rows 4 --prefix 64 --new 8"),
)
def peers(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="WORKLOAD", help="C1 if none is named; --list describes all.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Describe workloads and contenders, and leave.")] = False,
    rounds: arguments.Rounds = 3,
    contenders: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Who is compared; all, if none is named.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads of each engine; without it, torch's choice.")
    ] = None,
    rows: Annotated[int | None, arguments.ROWS] = None,
    prefix: Annotated[int | None, arguments.PREFIX] = None,
    own: Annotated[int | None, arguments.OWN] = None,
    new: Annotated[int | None, arguments.NEW] = None,
    as_json: Json = False,
    to: arguments.Output = None,
) -> None:
    """Time generate(), stock and patched, beside llama.cpp, CTranslate2 and OpenVINO, on the same weights and ids.

    Each engine runs in a process and an environment of its own, which `make peers` makes. They take turns within one
    run, and one computes at a time. A contender that can't be had is listed with the reason, and the others run. Exit
    code 1 if the tokens of a patched model in float32 are not stock's.
    """
    out = output(quiet=as_json)
    if list_all:
        every = {str(parameter.name) for parameter in context.command.params}
        refuse(context, every - {"list_all", "as_json"}, "--list only describes what there is")
        results.list_all(out, as_json)
        return
    arguments.check_file("--output", to)
    changes = {"rows": rows, "prefix": prefix, "own": own, "new": new}
    workloads = {name: workload_of(WORKLOADS, name, changes) for name in names or ["C1"]}
    chosen = contenders_of(contenders)
    models.quiet()
    arguments.set_threads(threads)
    records, interrupted = _run(workloads, chosen, rounds, lambda record: results.show(record, out))
    content = result(interrupted, **results.contenders_record(), workloads=records)
    hand_out(content, as_json, to)
    raise typer.Exit(exit_code(interrupted, all(map(results.all_agree, records))))


def contenders_of(text: str | None) -> dict[str, Contender]:
    """Those whose names stand in `text`, separated by commas; None: all.

    Raises:
        typer.BadParameter: there is no contender of a name.
    """
    names = [*CONTENDERS] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CONTENDERS:
            advice = f"there is no {name!r}. Choose among {', '.join(CONTENDERS)}, separated by commas."
            raise typer.BadParameter(advice, param_hint="'--contenders'")
    return {name: CONTENDERS[name] for name in names}


def _run(
    workloads: dict[str, NamedWorkload], chosen: dict[str, Contender], rounds: int, show
) -> tuple[list[Record], bool]:
    """The records of the workloads, and whether Ctrl-C cut them short."""
    records: list[Record] = []
    with progress().status("") as status:
        for name, workload in workloads.items():
            try:
                found = take_turns(
                    workload,
                    chosen,
                    rounds,
                    torch.get_num_threads(),
                    lambda text, name=name: status.update(f"{name}: {text}"),
                )
            except KeyboardInterrupt:
                if not records:
                    raise
                return records, True
            records.append(results.workload_record(name, workload, found))
            show(records[-1])
    return records, False


app = app_of(peers)
