"""What a patched call costs before it saves anything: `python -m benchmarks.overhead`, medians in milliseconds."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import relay_hf
from relay_hf.prefix import Witness


def median_ms(call: Callable[[], object], rounds: int = 51) -> float:
    """Median of `rounds` calls, the first two left out."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


def model_with_parameters(count: int) -> LlamaForCausalLM:
    """A narrow Llama of about `count` parameter tensors: nine in a layer, three outside."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 1000}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=(count - 3) // 9, pad_token_id=0)).eval()


def main() -> int:
    """Print the table."""
    logging.set_verbosity_error()
    table = Table("what", "ms")
    model = model_with_parameters(1000)
    witness = Witness(list(model.modules()))
    tensors = len(list(model.parameters()))
    table.add_row(f"witness of {tensors} parameters", f"{median_ms(lambda: witness.holds(list(model.modules()))):.2f}")

    rows = torch.randint(3, 1000, (32, 2048))
    rows[:, :2000] = rows[0, :2000]
    model = relay_hf.patch_model(model_with_parameters(300), policy="always")
    model.relay.warm(rows[0, :2000])
    ms = median_ms(lambda: model.relay.explain(rows))
    table.add_row("detection, lookup and witness: 32 rows of 2048 tokens, 300 parameters", f"{ms:.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
