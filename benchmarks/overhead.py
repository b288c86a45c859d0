"""What a patched call costs on the host before it saves anything: `python -m benchmarks.overhead`, medians in ms."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import relay_hf
from benchmarks.steps import decode_step
from relay_hf.cache_utils import LayerKV, LayerState, PrefixKV
from relay_hf.generation.decide import decide
from relay_hf.generation.facts import PrefillInputs
from relay_hf.generation.lay_out import lay_out
from relay_hf.kernels.segment import Segment
from relay_hf.model.fingerprint.fingerprint import ModelFingerprint
from relay_hf.model.modules import all_modules
from relay_hf.model.upstream.names import CACHE
from relay_hf.prefix import Match, PrefixEntry, Prompts, divided, pruned, shared_runs
from relay_hf.prefix.radix import RadixTree


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


def batches(rows: int = 256, tokens: int = 8192) -> dict[str, Tensor]:
    """Prompts of one length that share much, little, or bit by bit: `[rows, tokens]`."""
    alone = torch.randint(3, 32000, (rows, tokens))
    groups, chain = alone[:1].repeat(rows, 1), alone[:1].repeat(rows, 1)
    for row in range(rows):
        groups[row, 2000:] = alone[row // 64, 2000:]
        groups[row, 4000:] = alone[row // 8, 4000:]
        groups[row, 8000:] = alone[row, 8000:]
        chain[row, 31 * (row + 1) :] = alone[row, 31 * (row + 1) :]
    shuffled = groups[torch.randperm(rows)]
    return {"nothing shared": alone, "three levels, shuffled": shuffled, f"a chain of {rows - 1} runs": chain}


def build(ids: Tensor, store: RadixTree) -> None:
    """What a call does with its prompts before it runs anything: the tree, what of it is kept, and pruning."""
    prompts = Prompts.of(ids, None)
    runs = shared_runs(prompts, own=1)
    rows = prompts.rows(own=1)
    matches = [store.match(row, None) for row in rows] if len(store) else [Match()] * len(rows)
    pruned(divided(runs, lambda row, first: matches[row].within(first), rows), lambda tokens, run: tokens >= 16)


def keep(store: RadixTree, ids: Tensor, layers: int = 32) -> None:
    """Insert a prefix of a model of so many layers, as a call that has prefilled what is missing."""
    length = store.match(ids, None).length
    if length < len(ids):
        key = torch.zeros(1, len(ids) - length, 1)
        layer = LayerState(LayerKV(Segment(key, key), (key, key)))
        run = PrefixKV(length, len(ids) - length, (layer,) * layers)
        store.add(PrefixEntry(ids, run, torch.zeros(run.length, 2)), None)


def token_side(table: Table) -> None:
    """Trees of calls, and a store of 1,000 prefixes."""
    text = torch.randint(3, 32000, (4000,))
    prefixes = torch.randint(3, 32000, (1000, 4000))
    for row in range(1000):
        prefixes[row, : 500 * (row % 8)] = text[: 500 * (row % 8)]
    store = RadixTree(2**62)
    for ids in prefixes:
        keep(store, ids)
    for name, ids in batches().items():
        ms = median_ms(lambda ids=ids: build(ids, RadixTree(0)), rounds=9)
        table.add_row(f"tree of 256 rows of 8192 tokens, {name}", f"{ms:.1f}")
        keep(store, ids[0])
        ms = median_ms(lambda ids=ids: build(ids, store), rounds=9)
        table.add_row("... looked up among 1,000 prefixes of 4000 tokens", f"{ms:.1f}")
    wanted, new = iter(prefixes), iter(torch.cat([prefixes[:, :3000], prefixes.flip(0)[:, 3000:]], dim=1))
    table.add_row("lookup among them", f"{median_ms(lambda: store.match(next(wanted), None).runs(0, 4000)):.3f}")
    table.add_row("lookup and insertion of another, 32 layers", f"{median_ms(lambda: keep(store, next(new))):.3f}")


def before_the_first_forward(table: Table) -> None:
    """What a call of which the prefix is kept does before its own tokens go through the model."""
    rows = torch.randint(3, 1000, (32, 2048))
    rows[:, :2000] = rows[0, :2000]
    model = relay_hf.patch_model(model_with_parameters(300), policy="always")
    relay, config = model.relay, model.generation_config
    relay.warm(rows[0, :2000])
    config.max_length = 2048 + 32
    # As generate() has them: it makes a cache for each call, and drops a mask that is all ones.
    inputs = {
        CACHE: DynamicCache(config=model.config),
        "attention_mask": None,
        "position_ids": torch.arange(2048).repeat(32, 1),
        "logits_to_keep": 1,
    }

    def before(rows: Tensor, layout: bool) -> None:
        with torch.no_grad(), relay._hooks.open_call() as call:
            asked = PrefillInputs(rows, config, inputs)
            decision = decide(call.facts, asked)
            relay._hooks.store.touch(decision.matches)
            if layout:
                lay_out(call, decision, asked)

    what = "32 rows of 2048 tokens, 300 parameters"
    table.add_row(f"detection, lookup and fingerprint: {what}", f"{median_ms(lambda: before(rows, layout=False)):.2f}")
    table.add_row("... of it the fingerprint", f"{median_ms(lambda: ModelFingerprint(all_modules(model))):.2f}")
    table.add_row("... and layout", f"{median_ms(lambda: before(rows, layout=True)):.2f}")
    apart = torch.randint(3, 1000, (32, 2048))
    table.add_row("... of as many rows that share nothing", f"{median_ms(lambda: before(apart, layout=False)):.2f}")


def the_check(table: Table) -> None:
    """Whether the model is still the one that a prefix was kept of, and its share of a short call."""
    model = model_with_parameters(1000)
    fingerprint = ModelFingerprint(all_modules(model))
    tensors = len(list(model.parameters()))
    check = median_ms(lambda: fingerprint.holds(all_modules(model)))
    table.add_row(f"fingerprint of {tensors} parameters", f"{check:.2f}")
    rows = torch.randint(3, 1000, (8, 550))
    rows[:, :500] = rows[0, :500]
    relay_hf.patch_model(model, policy="always")

    def call() -> None:
        model.generate(rows, attention_mask=torch.ones_like(rows), max_new_tokens=32, min_new_tokens=32)

    took = median_ms(call, rounds=5)
    table.add_row("... call of 8 rows, 500 of 550 tokens kept, 32 new", f"{took:.0f}")
    table.add_row("... share of it, in percent", f"{100 * check / took:.2f}")


def main() -> int:
    """Print the table."""
    logging.set_verbosity_error()
    table = Table("what", "ms")
    the_check(table)
    before_the_first_forward(table)
    token_side(table)
    stock, relayed = decode_step()
    table.add_row("layer of a decode step of a tiny model, 8 rows, stock", f"{stock:.3f}")
    table.add_row("... relayed", f"{relayed:.3f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
