"""`relay-hf demo`: a support assistant answers many customers at once, stock and patched side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from . import models
from .console import REAL_MODEL, examples, output, print_json, progress
from .options import Dtype, Json, Model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from relay_hf import RelayReport

_COLUMNS = ("seconds", "speed-up", "new tokens/s", "KV MiB", "same tokens")


@dataclass
class Run:
    """One generate(): seconds, all tokens `[rows, tokens]`, and the report of a patched model."""

    name: str
    seconds: float
    tokens: Tensor
    report: RelayReport | None = None


@examples(
    ("16 customers, 32 new tokens each", "relay-hf demo"),
    ("a look in seconds, at a model that computes next to nothing", "relay-hf demo --tiny"),
    ("a small chat model from the Hub", f"relay-hf demo --model {REAL_MODEL}"),
)
def demo(
    model: Model = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Questions in the batch.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of each answer.")] = 32,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights. In float32 the tokens must be stock's.")] = "float32",
    tiny: Annotated[bool, typer.Option("--tiny", help="Build a model of two small layers, for a look.")] = False,
    as_json: Json = False,
) -> None:
    """Stock and patched generate() side by side: same tokens, seconds, KV bytes.

    A support assistant answers many customers at once. Their prompts start with one long system prompt, which stock
    generate() computes and stores for each of them, and a patched model once. Exit code 1 if float32 tokens differ.
    """
    if tiny and model is not None:
        raise typer.BadParameter(
            "--tiny builds a model, and --model names one; give only one of them.", param_hint="'--tiny'"
        )
    out = output(quiet=as_json)
    with progress().status("loading torch, Transformers and the model ..."):
        models.quiet()
        import relay_hf
        from relay_hf import showcase

        shown = models.load(model, tiny=tiny, dtype=dtype)
        inputs = shown.tokenizer(showcase.support_prompts(rows), padding=True, return_tensors="pt")
        inputs = inputs.to(shown.model.device)
    out.print(f"{shown.about}; {dtype} on {shown.model.device.type}", markup=False)
    out.print(f"{rows} prompts of up to {inputs.input_ids.shape[1]:,} tokens, {new_tokens} new tokens each\n")

    _timed("warming up", shown.model, {name: value[:1] for name, value in inputs.items()}, 2)
    runs = [_timed("stock generate()", shown.model, inputs, new_tokens)]
    relay_hf.patch_model(shown.model)  # the one line
    for name in ("relay_hf, first call", "relay_hf, prefix kept"):
        runs.append(_timed(name, shown.model, inputs, new_tokens))
        runs[-1].report = shown.model.relay.last

    entries = _entries(runs, rows * new_tokens)
    same = all(entry["same_tokens"] for entry in entries)
    if as_json:
        print_json(
            {"model": shown.about, "dtype": dtype, "device": shown.model.device.type, "rows": rows}
            | {"prompt_tokens": inputs.input_ids.shape[1], "new_tokens": new_tokens}
            | {"same_tokens": same, "runs": entries}
        )
    out.print(_table(entries))
    for run in runs[1:]:
        out.print(f"{run.name}: {run.report}", markup=False)
    if model is not None:
        answer = shown.tokenizer.decode(runs[-1].tokens[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        out.print(f"\nThe first answer: {answer.strip()}", markup=False)
    else:
        out.print("\nThe weights are random, so the text is noise. With a small chat model of the Hub:")
        out.print(f"  relay-hf demo --model {REAL_MODEL}")
    if not same and dtype != "float32":
        out.print(f"In {dtype} two tokens can tie within rounding, so a difference is not an error here.")
    elif not same:
        raise typer.Exit(1)


def _timed(name: str, model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int) -> Run:
    with progress().status(f"{name} ..."):
        start = time.perf_counter()
        tokens = model.generate(**inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False).cpu()
        return Run(name, time.perf_counter() - start, tokens)


def _entries(runs: list[Run], new_tokens: int) -> list[dict[str, Any]]:
    """The figures of each run that are shown. `new_tokens`: new tokens of all rows together."""
    stock, (*_, last) = runs[0], runs
    kv_stock = last.report.kv_bytes_stock if last.report else 0
    return [
        {
            "name": run.name,
            "seconds": run.seconds,
            "speed_up": stock.seconds / run.seconds,
            "new_tokens_per_second": new_tokens / run.seconds,
            "kv_bytes": (run.report.kv_bytes if run.report else kv_stock) or None,
            "same_tokens": run.tokens.equal(stock.tokens),
            "report": asdict(run.report) if run.report else None,
        }
        for run in runs
    ]


def _table(entries: list[dict[str, Any]]) -> Table:
    table = Table("", *(Column(name, justify="right") for name in _COLUMNS))
    for entry in entries:
        table.add_row(
            entry["name"],
            f"{entry['seconds']:.2f}",
            f"{entry['speed_up']:.1f}x",
            f"{entry['new_tokens_per_second']:,.1f}",
            f"{entry['kv_bytes'] / 2**20:.1f}" if entry["kv_bytes"] else "-",
            "yes" if entry["same_tokens"] else "[bold red]NO[/]",
            style="bold" if entry["report"] else None,
        )
    return table
