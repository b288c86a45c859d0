"""The command `relay-hf bench`: its options, and what it does from the first to the last line that it prints."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from .. import models
from ..console import REAL_MODEL, examples, output, progress
from ..model_names import check_name
from ..options import Json, Model
from . import arguments


@examples(
    ("the default prompts, and a model of random weights", "relay-hf bench"),
    ("your numbers: 8 rows that share 2,000 tokens, 64 new ones", "relay-hf bench --rows 8 --prefix 2000 --new 64"),
    ("a model of the Hub", f"relay-hf bench --model {REAL_MODEL}"),
    ("what Transformers itself offers, beside them", "relay-hf bench --contenders stock,prefix-copied,relay-cold"),
    ("every round, for a program to read", "relay-hf bench --output result.json"),
)
def bench(
    model: Model = None,
    device: arguments.Device = None,
    rounds: arguments.Rounds = 3,
    contenders: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            autocompletion=arguments.complete_contenders,
            help="Who is compared: stock, static-cache, prefix-copied (the prefix prefilled once, its cache copied for "
            "every row), relay-cold (patched, nothing kept), relay-kept (patched, the prefix kept).",
        ),
    ] = "stock,relay-cold,relay-kept",
    policy: arguments.Policy = "auto",
    threads: arguments.Threads = None,
    rows: Annotated[int, arguments.ROWS] = 16,
    prefix: Annotated[int, arguments.PREFIX] = 1024,
    own: Annotated[int, arguments.OWN] = 32,
    new: Annotated[int, arguments.NEW] = 32,
    as_json: Json = False,
    to: arguments.Output = None,
) -> None:
    """Time generate() on your model and the shape of your prompts: stock, patched, and patched with the prefix kept.

    Prompts are random tokens and the number of new tokens is forced, so the seconds are comparable and the text is
    noise. The model is in float32; without --model it is a Llama of random weights, 8 layers of width 512. Contenders
    take turns within one run. Exit code 1 if the tokens of a contender that must have stock's differ.
    """
    out = output(quiet=as_json)
    arguments.check_file("--output", to)
    check_name(model)
    with progress().status("loading torch and Transformers ..."):
        from .bench import Bench
        from .contenders import CONTENDERS
        from .record import exit_code, hand_out, result, same_as_stock
        from .run import Job, run
        from .table import describe, show, table_of
        from .timed_model import SMALL_MODEL, NamedModel
        from .workload import Workload

        models.quiet()
        arguments.set_threads(threads)
        place = arguments.device_of(device)
        with models.named():
            timed = SMALL_MODEL if model is None else NamedModel.of(model)
    workload = Workload(timed, rows, prefix, own, new)
    chosen = arguments.contenders_of(contenders, CONTENDERS)
    chosen = arguments.fitting(chosen, workload, "prompts that share nothing; give --prefix")
    job = Job(timed.about, workload, chosen, partial(Bench, workload, policy))
    (record,), interrupted = run([job], rounds, place, lambda record: None)
    out.print(f"model: {timed.about}", markup=False)
    same = same_as_stock(record, CONTENDERS)
    show(record, table_of(record, describe(record["workload"])), same, out)
    content = result(interrupted, policy=policy, workloads=[record])
    hand_out(arguments.with_gpu(content, place), as_json, to)
    raise typer.Exit(exit_code(interrupted, all(same.values())))
