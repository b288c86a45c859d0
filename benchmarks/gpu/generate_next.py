"""What serves the next call: a graph, a returned cache, a prefix from a file; and what must not after a change."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from relay_hf import patched

from .context import Context
from .generate_calls import NEW, OWN, RELAY, SHARED, build, conversation, generate, greedy, inputs_of, stock_of
from .generate_seen import Seen
from .store import Record

_REPLAYS = NEW - 1  # of a call on a kept graph: all decode steps


def _other_prefixes(context: Context) -> Record:
    """A longer prefix, a shorter one, and other padding take the graph that is there."""
    model, seen = build("llama", context), Seen(context)
    calls = [inputs_of(context, *each) for each in ((SHARED, OWN, 0), (300, (4, 2, 6, 8), 1), (17, (1, 5, 3, 7), 2))]
    stock = [stock_of(model, inputs) for inputs in calls]
    with patched(model, RELAY):
        for inputs, expected in zip(calls, stock, strict=True):
            what = f"{inputs['input_ids'].shape[1]} columns"
            seen.compare(what, model, generate(model, inputs), expected)
            seen.expect_graphs(what, model, 1)
    return seen.record()


def _returned_cache(context: Context) -> Record:
    """A next turn on the cache that a call has returned, whose graph has served another call since."""
    model, seen = build("llama", context), Seen(context)
    stock = conversation(model, context)
    with patched(model, RELAY):
        first, second = conversation(model, context)
        seen.expect("the first turn is not stock's", torch.equal(first.sequences, stock[0].sequences))
        report = seen.compare("second turn", model, second.sequences, greedy(stock[1]))
        seen.expect(f"not continued: {report.reason}", report.reason_code == "returned_cache")
    return seen.record()


def _saved_prefix(context: Context) -> Record:
    """A prefix that is warmed, written to a file, dropped and read from there."""
    model, inputs, seen = build("llama", context), inputs_of(context), Seen(context)
    stock = stock_of(model, inputs)
    with tempfile.TemporaryDirectory() as folder, patched(model, RELAY):
        row = OWN.index(max(OWN))  # without padding
        model.relay.warm(inputs["input_ids"][row, :SHARED], progress=False)
        model.relay.save(Path(folder) / "prefix")
        model.relay.clear()
        seen.expect("clear() has left prefixes", not model.relay.prefixes)
        model.relay.load(Path(folder) / "prefix")
        report = seen.compare("from the file", model, generate(model, inputs), stock)
        seen.expect("nothing of the file was used", report.prefix_tokens_reused > 0)
    return seen.record()


def _negate(model: PreTrainedModel) -> None:
    """Move no version of the weight, as a write through `.data` does not."""
    model.model.layers[0].self_attn.v_proj.weight.data.mul_(-1.5)


def _train(model: PreTrainedModel) -> None:
    """Make a step of an optimizer, in eval mode: train() alone would drop what is kept."""
    ids = torch.arange(3, 27, device=model.device).view(2, 12)
    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=0.05).step()
    model.zero_grad(set_to_none=True)


def _weights(context: Context) -> Record:
    """Weights that change in place: the graph reads them, the prefix is computed anew."""
    model, twin, inputs, seen = build("llama", context), build("llama", context), inputs_of(context), Seen(context)
    before = stock_of(twin, inputs)
    with patched(model, RELAY):
        seen.compare("as built", model, generate(model, inputs), before)
        for what, change in ((".data.mul_", _negate), ("an optimizer's step", _train)):
            change(model)
            twin.load_state_dict(model.state_dict())
            stock = stock_of(twin, inputs)
            seen.expect(f"{what}: stock's tokens did not change", not torch.equal(stock.tokens, before.tokens))
            report = seen.compare(what, model, generate(model, inputs), stock)
            seen.expect(f"{what}: a prefix of other weights was used", report.prefix_tokens_reused == 0)
            seen.expect(f"{what}: the graph was not", not seen.graphs or report.graph_steps == _REPLAYS)
            seen.expect_graphs(what, model, 1)
            before = stock
    return seen.record()


def _arithmetic(context: Context) -> Record:
    """TensorFloat-32 on, and off again: of the one nothing serves the other. (What it rounds may choose a token.)"""
    model, inputs, seen = build("llama", context), inputs_of(context), Seen(context)
    stock = stock_of(model, inputs)
    with patched(model, RELAY):
        seen.compare("off", model, generate(model, inputs), stock)
        torch.set_float32_matmul_precision("high")
        try:
            report = seen.compare("on", model, generate(model, inputs), None)
        finally:
            torch.set_float32_matmul_precision("highest")
        seen.expect("on: a prefix of other arithmetic was used", report.prefix_tokens_reused == 0)
        seen.expect("on: a graph of other arithmetic was used", report.graph_steps < _REPLAYS)
        seen.expect_graphs("on", model, 2)
        report = seen.compare("off again", model, generate(model, inputs), stock)
        seen.expect("off again: the prefix was not used", report.prefix_tokens_reused > 0)
        seen.expect("off again: the graph was not used", not seen.graphs or report.graph_steps == _REPLAYS)
    return seen.record()


CELLS: dict[str, Callable[[Context], Record]] = {
    "other prefixes on one graph": _other_prefixes,
    "a returned cache, continued": _returned_cache,
    "a prefix from a file": _saved_prefix,
    "weights changed in place": _weights,
    "TF32 switched": _arithmetic,
}
