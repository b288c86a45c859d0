"""A support assistant answers 16 customers at once: stock generate() and relay_hf side by side.

All prompts start with the same system prompt. By default the model has a real shape and random weights, so the demo
needs no download and its text is noise: the tokens, seconds and bytes are what to look at.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor
from transformers import PreTrainedModel

import relay_hf
from relay_hf import showcase

COLUMNS = ("seconds", "speed-up", "new tokens/s", "KV MiB", "same tokens")

console = Console(width=None if sys.stdout.isatty() else 120)


def timed(name: str, model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int) -> tuple[float, Tensor]:
    """Seconds of one generate(), and its tokens."""
    with console.status(f"{name} ..."):
        start = time.perf_counter()
        tokens = model.generate(**inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False).cpu()
        return time.perf_counter() - start, tokens


def main() -> int:
    """Run all three, print the table, and fail if float32 tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hub id or a local path, instead of random weights")
    parser.add_argument("--rows", type=int, default=16, help="questions in the batch (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens for each answer (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--tiny", action="store_true", help="two small layers, for a look in seconds")
    arguments = parser.parse_args()

    shown = showcase.load(
        arguments.model, size="tiny" if arguments.tiny else "base", dtype=getattr(torch, arguments.dtype)
    )
    model, prompts = shown.model, showcase.support_prompts(arguments.rows)
    inputs = shown.tokenizer(prompts, padding=True, return_tensors="pt")
    inputs = inputs.to(model.device)
    rows, width = inputs.input_ids.shape
    console.print(f"{shown.about}; {arguments.dtype} on {model.device.type}")
    console.print(f"{rows} prompts of up to {width} tokens, {arguments.new_tokens} new tokens each")

    timed("warming up", model, {name: value[:1] for name, value in inputs.items()}, 2)
    stock_seconds, stock_tokens = timed("stock generate()", model, inputs, arguments.new_tokens)
    relay_hf.patch_model(model)  # the one line
    runs = [("stock generate()", stock_seconds, stock_tokens, None)]
    for name in ("relay_hf, first call", "relay_hf, prefix kept"):
        runs.append((name, *timed(name, model, inputs, arguments.new_tokens), model.relay.last))

    table = Table("", *(Column(name, justify="right") for name in COLUMNS))
    kv_stock = runs[-1][-1].kv_bytes_stock
    for name, seconds, tokens, report in runs:
        kv = report.kv_bytes if report else kv_stock
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{stock_seconds / seconds:.1f}x",
            f"{rows * arguments.new_tokens / seconds:.1f}",
            f"{kv / 2**20:.1f}" if kv else "-",
            "yes" if torch.equal(tokens, stock_tokens) else "NO",
        )
    console.print(table)
    for name, *_, report in runs[1:]:
        console.print(f"{name}: {report}")
    same = all(torch.equal(tokens, stock_tokens) for _, _, tokens, _ in runs)
    if arguments.dtype != "float32":
        console.print(f"In {arguments.dtype} two tokens can tie within rounding, so a difference is not an error here.")
        return 0
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
