"""`relay-hf explain`: what a batch of prompts would share, and what that would save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from relay_hf.report import readable_bytes

from . import models
from .console import REAL_MODEL, about, examples, output, print_json, progress
from .options import Json
from .prompts import Jsonl, Prompt, Separator, Tokenizer, padded, read_prompts, token_ids
from .tree_view import preview, tree_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from relay_hf.prefix import PrefixNode

    from .estimate import Estimate


@examples(
    ("what the prompts of the demo share", "relay-hf explain"),
    ("a prompt in each line", "relay-hf explain prompts.txt"),
    ("with a real tokenizer, and its model's KV sizes", f"relay-hf explain prompts.txt --model {REAL_MODEL}"),
    ("lines of JSON, four samples of each prompt", "relay-hf explain log.jsonl --jsonl prompt --samples 4"),
    ("chats, which its template renders", f"relay-hf explain chats.jsonl --jsonl messages --model {REAL_MODEL}"),
    ("prompts of several lines, with a line END between them", "relay-hf explain prompts.txt --separator END"),
    ("from standard input, for a program to read", "cat prompts.txt | relay-hf explain - --json"),
)
def explain(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="PROMPTS", help="A file with a prompt in each line, or - ; without it, the demo's."),
    ] = None,
    jsonl: Jsonl = None,
    separator: Separator = None,
    tokenizer: Tokenizer = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help=f"Hub id, such as {REAL_MODEL}, or folder of the model whose KV sizes are shown. Its configuration is "
            "read, not its weights. Without it, the demo's model where the demo has run, else random.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rows of each prompt: num_return_sequences, or num_beams.")
    ] = 1,
    new: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of each answer.")] = 32,
    as_json: Json = False,
) -> None:
    """What a batch of prompts would share, as a tree, and what that would save. Nothing is generated.

    Each run of tokens that rows share is computed, stored and read once. Prompt tokens are counted exactly; KV bytes
    and seconds are estimates. Whether policy "auto" would relay is said for this machine.
    """
    prompts = read_prompts(context, source, jsonl, separator)
    models.check_name(model)
    models.check_name(tokenizer, "--tokenizer")
    out = output(quiet=as_json)
    with progress().status("loading torch, Transformers and the tokenizer ..."):
        models.quiet()
        import torch

        from relay_hf import showcase
        from relay_hf.errors import TokenIdError

        from .estimate import estimate_call

        shown = models.load_without_weights(model, tokenizer)
        chats = shown.tokenizer.chat_template is not None
        asked: list[Prompt] = [*(showcase.support_chats(16) if chats else showcase.support_prompts(16))]
        rows = token_ids(prompts or asked, shown.tokenizer)
        ids, mask = (each.repeat_interleave(samples, dim=0) for each in padded(rows))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with about("--tokenizer", "Give the model's own tokenizer, or leave one of the two out.", TokenIdError):
            estimate = estimate_call(shown.model, ids, mask, new, device)

    if as_json:
        print_json(_content(estimate, shown.tokenizer, device.type))
    out.print(f"model: {shown.about}", markup=False)
    if tokenizer is None and shown.is_random:
        out.print("tokenizer: built on the spot from the demo's texts; on other texts a real one counts fewer tokens")
    out.print()
    out.print(tree_of(estimate, shown.tokenizer))
    out.print()
    _totals(estimate, out)
    out.print(_verdict(estimate, device.type), markup=False)


def _totals(estimate: Estimate, out: Console) -> None:
    table = Table("", *(Column(name, justify="right") for name in ("stock", "relay_hf", "saved")))
    pairs: list[tuple[str, int, int, Callable[[int], str]]] = [
        ("prompt tokens computed", estimate.stock_tokens, estimate.computed_tokens, "{:,}".format)
    ]
    if estimate.kv_bytes is not None and estimate.kv_bytes_stock is not None:
        label = f"KV at the end, with {estimate.new} new tokens a row"
        pairs.append((label, estimate.kv_bytes_stock, estimate.kv_bytes, readable_bytes))
    for name, stock, ours, show in pairs:
        table.add_row(name, show(stock), show(ours), f"{1 - ours / stock:.0%}" if stock else "-")
    out.print(table)
    if estimate.kv_bytes is None:
        out.print("KV bytes are left out: this type's configuration does not say them in the usual way.")


def _verdict(estimate: Estimate, device: str) -> str:
    """What policy "auto" would do, and what can be shared at all."""
    where = f"on this machine's {device.upper()}"
    if estimate.rows == 1:
        return "One row has no other row to share with; its tokens may be kept for later calls."
    if not estimate.shared.relays:
        return f"Nothing is relayed, whatever the policy: {estimate.shared.reason}."
    verdict = estimate.verdict
    if not verdict.relays:
        why = verdict.reason.removeprefix("policy 'auto': ")
        return f"Left to stock by default, {where}: {why}."
    report, all_shared = verdict.report(), estimate.shared.report()
    less = report.prompt_tokens_saved < all_shared.prompt_tokens_saved
    how = ", but for runs too short to pay" if less else ""
    seconds = f"; the cost model expects to save {_seconds(verdict.gain)}" if verdict.gain else ""
    return f'Relayed by default (policy "auto"), {where}{how}: {verdict.reason}{seconds}.'


def _content(estimate: Estimate, tokenizer: PreTrainedTokenizerBase, device: str) -> dict[str, Any]:
    """The facts that are shown, as JSON."""
    from relay_hf.prefix import walk

    verdict = estimate.verdict

    def entry(depth: int, run: PrefixNode) -> dict[str, Any]:
        return {
            "depth": depth,
            "start": run.start,
            "tokens": len(run.ids),
            "rows": list(run.rows),
            "kv_bytes": estimate.token_bytes and len(run.ids) * estimate.token_bytes,
            "text": preview(run, tokenizer),
        }

    return {
        "rows": estimate.rows,
        "new_tokens": estimate.new,
        "can_share": estimate.shared.relays,
        "reason": estimate.shared.reason,
        "shared": [entry(depth, run) for depth, run in walk(estimate.shared.runs)],
        "prompt_tokens": {"stock": estimate.stock_tokens, "relay_hf": estimate.computed_tokens},
        "kv_bytes": {"stock": estimate.kv_bytes_stock, "relay_hf": estimate.kv_bytes},
        "auto": {
            "device": device,
            "relayed": verdict.relays,
            "reason": verdict.reason,
            "expected_saving_seconds": verdict.gain,
        },
    }


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
