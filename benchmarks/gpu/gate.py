"""What policy "auto" expects beside what is measured: generate() end to end, stock and relayed."""

from __future__ import annotations

import itertools
import statistics

from transformers import PreTrainedModel
from transformers.utils import logging

from relay_hf.cli.benchmark.bench import Bench
from relay_hf.cli.benchmark.contenders import CONTENDERS
from relay_hf.cli.benchmark.measure import measure
from relay_hf.cli.benchmark.timed_model import ModelShape
from relay_hf.cli.benchmark.workload import Workload
from relay_hf.generation import cost_model

from . import models
from .context import Context
from .store import Record

# Eight layers of Llama-3-8B.
_MODEL = ModelShape(hidden=4096, intermediate=14336, layers=8, heads=32, kv_heads=8, vocab=128256)
_TINY = ModelShape(hidden=32, intermediate=48, layers=1, heads=2, kv_heads=1, vocab=97)
_ROWS, _PREFIXES, _OWN, _NEW = (32, 4, 1), (2048, 512, 8192, 64), 64, 32
_CELL_SECONDS = 6.0
_PATCHED = ("relay-cold", "relay-kept")


def cells(dry_run: bool) -> dict[str, Workload]:
    """Calls by key."""
    if dry_run:
        workloads = [Workload(_TINY, rows=2, prefix=20, own=4, new=2)]
    else:
        shapes = itertools.product(_PREFIXES, _ROWS)
        workloads = [Workload(_MODEL, rows, prefix, _OWN, _NEW) for prefix, rows in shapes]
    return {f"B={each.rows} prefix={each.prefix} own={each.own} new={each.new}": each for each in workloads}


def run(context: Context, workload: Workload) -> Record:
    """Three rounds or more of stock and of the relay, cold and with the prefix kept."""
    logging.set_verbosity_error()
    model = models.build(workload.model, context.device)
    bench = Bench(workload, "always", model)
    least = 1 if context.dry_run else 4

    def enough(measurements: list, elapsed: float) -> bool:
        rounds = len(measurements[0].seconds)
        return rounds >= least and (rounds >= 10 or elapsed > _CELL_SECONDS)

    measurements = measure(bench, {name: CONTENDERS[name] for name in ("stock", *_PATCHED)}, enough, lambda name: None)
    # The first round pays for what is compiled and loaded.
    seconds = {each.contender: statistics.median(each.seconds[1:] or each.seconds) for each in measurements}
    measured = {name: seconds["stock"] - seconds[name] for name in _PATCHED}
    return {
        "rows": workload.rows,
        "prefix": workload.prefix,
        "seconds": seconds,
        "rounds": [each.seconds for each in measurements],
        "gain": measured,
        "predicted_gain": {
            name: predicted_gain(model, workload, kept) for name, kept in (("relay-cold", False), ("relay-kept", True))
        },
        "relayed": {each.contender: each.report.relayed for each in measurements if each.report},
        "same_tokens": {each.contender: each.same_tokens for each in measurements},
        "report": repr(measurements[1].report),
    }


def predicted_gain(model: PreTrainedModel, workload: Workload, kept: bool) -> float:
    """Seconds that the gate expects relaying to save, with the prefix kept from before or not."""
    runs = ((workload.prefix, workload.rows, kept),)
    replayed = model.device.type == "cuda"  # where as many tokens are asked for
    shape = cost_model.Shape(workload.rows, workload.new, runs, forwards=int(not kept), replayed=replayed)
    machine = cost_model.Machine.of(model.device, model.dtype)
    if machine is None:
        raise RuntimeError(f"the gate knows nothing of {model.device}")
    return cost_model.expected_gain(shape, cost_model.ModelCost.of(model.modules(), model.config), machine)
