"""Threads whose order is known, and whose errors reach the test."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
from transformers import StoppingCriteria

from tests.support.counts import count_tried

LIMIT = 60  # seconds that a thread waits for another before its test fails


def together(*works: Callable[[], Any]) -> list[Any]:
    """What each returns, run in a thread of its own; an exception of any is raised."""
    count_tried("threads", len(works))
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(LIMIT) for future in [pool.submit(work) for work in works]]


class Gate:
    """Where one thread waits until another lets it through."""

    def __init__(self) -> None:
        self._reached, self._open = Event(), Event()

    def wait(self) -> None:
        """Say that the gate is reached, and wait there."""
        self._reached.set()
        assert self._open.wait(LIMIT), "nobody opened the gate"

    @contextmanager
    def held(self, work: Callable[[], Any]):
        """Within it `work`, in another thread, waits at the gate; its result is there afterwards."""
        count_tried("threads")
        with ThreadPoolExecutor(1) as pool:
            future: Future = pool.submit(work)
            future.add_done_callback(lambda _: self._reached.set())
            try:
                assert self._reached.wait(LIMIT), "nobody came to the gate"
                assert not future.done(), f"it ended before the gate: {future.exception() or future.result()!r}"
                yield future
            finally:
                self._open.set()


class AtToken(StoppingCriteria):
    """A gate behind the n-th token."""

    def __init__(self, gate: Gate, after: int = 2) -> None:
        self.gate, self.left = gate, after

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        if self.left == 0:
            self.gate.wait()
        return torch.zeros(len(input_ids), dtype=torch.bool)
