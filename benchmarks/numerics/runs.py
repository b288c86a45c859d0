"""Measuring many subjects and seeds, on one process or on several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from transformers.utils import logging

from .errors import Errors, measure
from .results import Result, summarize
from .subjects import DTYPES, Subject

Call = tuple[Subject, str, int]  # what is measured, in which dtype, with which seed


def calls(subjects: Sequence[Subject], seeds: int | None) -> list[Call]:
    """All measurements; `seeds` of each subject and dtype, or as many as the subject says."""
    return [
        (subject, dtype, seed) for subject in subjects for dtype in DTYPES for seed in range(seeds or subject.seeds)
    ]


def run(
    subjects: Sequence[Subject], seeds: int | None, jobs: int, on_call: Callable[[Call], None] = lambda _: None
) -> list[Result]:
    """The result of each subject in each dtype, in this order. `on_call` hears of each measurement that is done."""
    errors: dict[tuple[str, str], list[Errors]] = {}
    todo = calls(subjects, seeds)
    for call, measured in zip(todo, _measured(todo, jobs), strict=True):
        errors.setdefault((call[0].name, call[1]), []).append(measured)
        on_call(call)
    routed = {subject.name: subject.routed for subject in subjects}
    return [summarize(name, dtype, routed[name], each) for (name, dtype), each in errors.items()]


def _measured(todo: Sequence[Call], jobs: int) -> Iterator[Errors]:
    if jobs == 1:
        _start()
        yield from (measure(*call) for call in todo)
        return
    # A forked process would share torch's threads.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start) as pool:
        yield from pool.map(measure, *zip(*todo, strict=True), chunksize=3)


def _start() -> None:
    torch.set_num_threads(1)  # tiny models gain nothing from threads
    logging.set_verbosity_error()
