"""The command `relay-hf bench`: its options, and what it does from the first to the last line that it prints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .. import models
from ..console import REAL_MODEL, examples, output, progress, refuse
from ..options import MODEL_HELP, Json
from ..prompts import Jsonl, Prompt, Separator, Tokenizer, read_prompts, token_ids
from . import arguments


@examples(
    ("the default prompts, and a model of random weights", "relay-hf bench"),
    ("your numbers: 8 rows that share 2,000 tokens, 64 new ones", "relay-hf bench --rows 8 --prefix 2000 --new 64"),
    ("a model of the Hub", f"relay-hf bench --model {REAL_MODEL}"),
    ("your own prompts, one in each line", "relay-hf bench prompts.txt"),
    ("your own chats", "relay-hf bench chats.jsonl --jsonl messages"),
    ("what Transformers itself offers, beside them", "relay-hf bench --contenders stock,prefix-copied,relay-cold"),
    ("every round, for a program to read", "relay-hf bench --output result.json"),
)
def bench(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="PROMPTS", help="A file with a prompt in each line, or - ; without it, random tokens."),
    ] = None,
    jsonl: Jsonl = None,
    separator: Separator = None,
    tokenizer: Tokenizer = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="ID", help=f"{MODEL_HELP} Without it, random, and with PROMPTS the demo's chat model."),
    ] = None,
    device: arguments.Device = None,
    rounds: arguments.Rounds = 3,
    contenders: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            autocompletion=arguments.complete_contenders,
            help="Who is compared: stock, static-cache, prefix-copied (the prefix prefilled once, its cache copied for "
            "every row), relay-cold (patched, nothing kept), relay-kept (patched, after a call with the same prefix "
            "and other own tokens; with PROMPTS, after a call with the same prompts, of which only tokens that several "
            "prompts share are kept, so it is left out for a single prompt).",
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
    """Time generate() on your model and your prompts: stock, patched, and patched with the prefix kept.

    Without PROMPTS they are random tokens of the shape that you give. The number of new tokens is forced, so that
    seconds are comparable. The model is in float32. Without --model, PROMPTS run on the demo's small chat model, and
    random tokens on a Llama of random weights, 8 layers of width 512. Contenders take turns within one run. Exit code 1
    if the tokens of a contender that must have stock's differ.
    """
    prompts = read_source(context, source, jsonl, separator)
    out = output(quiet=as_json)
    arguments.check_file("--output", to)
    models.check_name(model)
    models.check_name(tokenizer, "--tokenizer")
    with progress().status("loading torch and Transformers ..."):
        from relay_hf.showcase import CHAT_MODEL, RANDOM

        from .bench import Bench
        from .contenders import CONTENDERS
        from .file_bench import FileBench
        from .record import exit_code, hand_out, result, same_as_stock
        from .run import Job, run
        from .table import describe, show, table_of
        from .timed_model import SMALL_MODEL, NamedModel
        from .workload import FileWorkload, Workload

        models.quiet()
        arguments.set_threads(threads)
        place = arguments.device_of(device)
        if model is None and prompts is None:
            model = RANDOM
        elif model is None or model == CHAT_MODEL:
            model = models.chat_model(progress())
        with models.named():
            timed = SMALL_MODEL if model == RANDOM else NamedModel.of(model)
        chosen = arguments.contenders_of(contenders, CONTENDERS)
        if prompts is None:
            workload = Workload(timed, rows, prefix, own, new)
            bench_of: Callable[..., Bench] = partial(Bench, workload, policy)
            chosen = arguments.fitting(chosen, workload, "prompts that share nothing; give --prefix")
        else:
            ids = token_ids(prompts, models.load_without_weights(model, tokenizer).tokenizer)
            arguments.check_ids(ids, timed.vocab)
            workload = FileWorkload.of(str(source), timed, ids, new)
            bench_of = partial(FileBench, workload, policy, ids)
            chosen = arguments.fitting(chosen, workload, f"prompts that share nothing, as those of {source}")
    job = Job(timed.about, workload, chosen, bench_of)
    (record,), interrupted = run([job], rounds, place, lambda record: None)
    out.print(f"model: {timed.about}", markup=False)
    if source is not None:
        out.print(f"prompts: {source}", markup=False)
    same = same_as_stock(record, CONTENDERS)
    show(record, table_of(record, describe(record["workload"])), same, out)
    content = result(interrupted, policy=policy, workloads=[record])
    hand_out(arguments.with_gpu(content, place), as_json, to)
    raise typer.Exit(exit_code(interrupted, all(same.values())))


def read_source(
    context: typer.Context, source: Path | None, jsonl: str | None, separator: str | None
) -> list[Prompt] | None:
    """The prompts of a file, which have a shape of their own; None: random tokens of the shape that is given.

    Raises:
        typer.BadParameter: they can't be read, or an option would be ignored.
    """
    if source is None:
        refuse(context, {"tokenizer"}, "without PROMPTS no text is read")
    else:
        refuse(context, {"rows", "prefix", "own"}, "PROMPTS have rows and tokens of their own")
        arguments.check_prompts(source)
    return read_prompts(context, source, jsonl, separator)
