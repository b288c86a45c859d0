"""Workloads G1 and G2 end to end: a cell's record, which may be filled in several runs, contender by contender."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from . import models
from .context import Context, LeftOut
from .e2e_bytes import Bytes
from .e2e_cells import STATIC, Cell
from .e2e_contenders import E2EBench
from .e2e_turns import Turns
from .store import Record

ROUNDS, _DRY_ROUNDS = 3, 2
_CELL_SECONDS = 110.0  # for all contenders that take turns
_STATIC_SECONDS, _STATIC_LEAST = 150.0, 75.0  # for the one that compiles; with less it is not begun


def missing(asked: Sequence[str] | None, cell: Cell, record: Record | None) -> list[str]:
    """Contenders that are asked for (None: all) and that a record has no result of."""
    had = (record or {}).get("contenders", {})
    return [name for name in cell.contenders if (asked is None or name in asked) and not _settled(had.get(name, {}))]


def done(context: Context, cell: Cell, record: Record | None) -> bool:
    """Whether there is nothing left to do for a cell."""
    return not missing(context.contenders, cell, record)


def run(context: Context, cell: Cell) -> Record:
    """Measure what is missing, and add it to what the file has."""
    if context.ceilings is None:
        raise LeftOut("the floor needs the ceilings: run that section first")
    logging.set_verbosity_error()
    start = time.monotonic()
    names = missing(context.contenders, cell, context.before)
    model = models.build(cell.workload.model, context.device)
    record = copy.deepcopy(context.before) or new_record(cell, model.dtype.itemsize, context.ceilings.bandwidth)
    record["runs"] += 1
    bench = E2EBench(cell.workload, model, context)
    turns = Turns(context, bench, record, lambda: context.save(record))
    rounds = _DRY_ROUNDS if context.dry_run else ROUNDS
    try:
        together = [name for name in names if name != STATIC]
        if together:
            turns.measure(together, rounds, min(context.deadline, time.monotonic() + _CELL_SECONDS))
        if STATIC in names:
            _measure_static(context, turns, model, record, rounds)
    finally:
        del bench, turns
        models.free()
    record["elapsed_s"] += time.monotonic() - start
    return record


def _measure_static(context: Context, turns: Turns, model: PreTrainedModel, record: Record, rounds: int) -> None:
    """By itself and last: a compiled call holds its memory, and a compilation may take what time there is."""
    left = context.deadline - time.monotonic()
    if left < _STATIC_LEAST:
        why = f"compiling may take {_STATIC_LEAST:.0f} s, {max(0.0, left):.0f} s are left"
        record["contenders"][STATIC] = {"left_out": why}
        return
    models.free()
    try:
        turns.measure([STATIC], rounds, time.monotonic() + min(left, _STATIC_SECONDS))
    finally:
        for name in ("_compiled_call", "_previous_max_cache_length"):  # of this shape; the next has another
            vars(model).pop(name, None)
        torch.compiler.reset()


def _settled(entry: Record) -> bool:
    """Whether a contender has figures, or can have none on this chip."""
    return "total_s" in entry or "does_not_fit" in entry


def new_record(cell: Cell, itemsize: int, bandwidth: float) -> Record:
    """A cell of which nothing is measured yet: what it is, and the floors of its decode step."""
    workload, bytes_ = cell.workload, Bytes(cell.workload.model, itemsize)
    floors = {
        "floor_step_s": bytes_.step(workload),
        "stock_floor_step_s": bytes_.stock_step(workload, copying=False),
        "stock_copying_step_s": bytes_.stock_step(workload, copying=True),
    }
    return {
        "workload": cell.name,
        "rows": workload.rows,
        "prefix": workload.prefix,
        "own": workload.own,
        "new": workload.new,
        "floor_bytes": {"weights": bytes_.weights, "kv_of_a_token": bytes_.token, "step": bytes_.step(workload)},
        **{name: count / bandwidth for name, count in floors.items()},
        "runs": 0,
        "elapsed_s": 0.0,
        "contenders": {},
    }
