"""`relay-hf demo`: a support assistant answers many customers at once, stock and patched side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import models
from .console import examples, output, print_json, progress
from .demo_view import show
from .options import Dtype, Json, Model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from relay_hf import RelayReport
    from relay_hf.showcase import Showcase


@dataclass
class Run:
    """One generate(): seconds, new tokens `[rows, tokens]`, and the report of a patched model."""

    name: str
    seconds: float
    tokens: Tensor
    report: RelayReport | None = None


@examples(
    ("6 customers, up to 40 new tokens each", "relay-hf demo"),
    ("more of them", "relay-hf demo --rows 16"),
    ("without a download, on random weights", "relay-hf demo --model random"),
    ("a look in seconds, at a model that computes next to nothing", "relay-hf demo --tiny"),
    ("a model of the Hub", "relay-hf demo --model HuggingFaceTB/SmolLM2-360M-Instruct"),
)
def demo(
    model: Model = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Questions in the batch.")] = 6,
    new: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of each answer, at most.")] = 40,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights. In float32 the tokens must be stock's.")] = "float32",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Build a model of random weights and two small layers, for a look.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Stock and patched generate() side by side: same answers, seconds, KV bytes.

    A support assistant answers several customers at once. Their prompts start with one long system prompt, which stock
    generate() computes and stores for each of them, and a patched model once. Exit code 1 if float32 tokens differ.
    """
    if tiny and model not in (None, "random"):
        raise typer.BadParameter(
            "--tiny builds a model, and --model names one; give only one of them.", param_hint="'--tiny'"
        )
    out = output(quiet=as_json)
    from .environment import environment

    shown = models.load_with_progress("random" if tiny else model, tiny=tiny, dtype=dtype)
    record = environment() | {"model": shown.about, "dtype": dtype} | _compare(shown, rows, new)
    if as_json:
        print_json(record)
    show(record, out)
    if shown.is_random:
        out.print("\nWithout --model and --tiny the demo takes a small chat model, whose text is English.")
    if not record["same_tokens"] and dtype != "float32":
        out.print(f"In {dtype} two tokens can tie within rounding, so a difference is not an error here.")
    elif not record["same_tokens"]:
        raise typer.Exit(1)


def _compare(shown: Showcase, rows: int, new: int) -> dict[str, Any]:
    """The figures and answers of three runs of one batch, as JSON takes them."""
    import relay_hf
    from relay_hf import showcase

    chats = showcase.support_chats(rows)
    inputs = shown.inputs(chats)
    few = {name: value[:1, -8:] for name, value in inputs.items()}
    _timed("warming up", shown.model, few, 2)  # the first call of a process also loads code
    stock = _timed("stock generate()", shown.model, inputs, new)
    relay_hf.patch_model(shown.model)  # the one line
    relayed = [_timed(name, shown.model, inputs, new) for name in ("relay_hf, first call", "relay_hf, prefix kept")]
    same = [all(run.tokens[row].equal(stock.tokens[row]) for run in relayed) for row in range(rows)]
    texts = [shown.texts(run.tokens) for run in (stock, relayed[-1])]
    answers = [
        {"question": chat[-1]["content"], "stock": theirs, "relay_hf": ours, "same_tokens": equal}
        for chat, theirs, ours, equal in zip(chats, *texts, same, strict=True)
    ]
    record = {"device": shown.model.device.type, "rows": rows, "prompt_tokens": inputs.input_ids.shape[1]}
    return record | {
        "new_tokens": new,
        "same_tokens": all(same),
        "answers": answers,
        "runs": _entries([stock, *relayed]),
    }


def _timed(name: str, model: PreTrainedModel, inputs: Mapping[str, Tensor], new: int) -> Run:
    with progress().status(f"{name} ..."):
        start = time.perf_counter()
        tokens = model.generate(**inputs, max_new_tokens=new, do_sample=False).cpu()
        seconds = time.perf_counter() - start
    relay = getattr(model, "relay", None)
    return Run(name, seconds, tokens[:, inputs["input_ids"].shape[1] :], relay and relay.last)


def _entries(runs: list[Run]) -> list[dict[str, Any]]:
    """The figures of each run that are shown."""
    stock, last = runs[0], runs[-1].report
    kv_stock = last.kv_bytes_stock if last else None
    return [
        {
            "name": run.name,
            "seconds": run.seconds,
            "speed_up": stock.seconds / run.seconds,
            "kv_bytes": run.report.kv_bytes if run.report else kv_stock,
            "same_tokens": run.tokens.equal(stock.tokens),
            "report": asdict(run.report) if run.report else None,
        }
        for run in runs
    ]
