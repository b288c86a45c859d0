"""Running many cases, on one process or on several."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from .case import draw_model
from .precision import deprecations_raise
from .run import Outcome, run

_CHUNK = 16  # cases handed to a worker at once


def outcomes(numbers: Sequence[int], types: Sequence[str], dtype: str, jobs: int) -> Iterator[Outcome]:
    """The outcome of each case. Those of one model follow each other, so that it is built once."""
    with deprecations_raise():
        numbers = sorted(numbers, key=lambda number: draw_model(number, types))
    if jobs == 1:
        start()
        yield from (run(number, types, dtype) for number in numbers)
        return
    chunks = [numbers[begin : begin + _CHUNK] for begin in range(0, len(numbers), _CHUNK)]
    context = multiprocessing.get_context("spawn")  # a forked process would share torch's threads
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=start) as pool:
        for done in pool.map(partial(_run_chunk, types=types, dtype=dtype), chunks):
            yield from done


def start() -> None:
    """Prepare a process: tiny models gain nothing from threads, and rarer collections of garbage save a fifth."""
    torch.set_num_threads(1)
    gc.set_threshold(50_000, 20, 100)


def _run_chunk(numbers: Sequence[int], types: Sequence[str], dtype: str) -> list[Outcome]:
    return [run(number, types, dtype) for number in numbers]
