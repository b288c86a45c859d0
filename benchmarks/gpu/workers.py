"""Worker processes: compiling takes most of the time of what is not timed, and there are more cores than one."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .store import Record

Task = tuple[Any, ...]
_state: dict[str, Callable[..., Record]] = {}


class Workers:
    """A pool that is started at its first use, and again after it was stopped.

    Args:
        count: processes; 0 runs everything in this one.
        make: returns what runs a task; called once in each process.
        arguments: of `make`.
    """

    def __init__(self, count: int, make: Callable[..., Callable[..., Record]], *arguments: object) -> None:
        self._count = min(count, os.cpu_count() or 1)
        self._make, self._arguments = make, arguments
        self._pool: Any = None

    def run(self, tasks: Sequence[Task], deadline: float) -> Iterator[tuple[Task, Record]]:
        """Tasks and their records as they are done; what is not done at `deadline` (of `time.monotonic`) is stopped."""
        if self._count == 0:
            run = self._make(*self._arguments)
            for task in tasks:
                if time.monotonic() < deadline:
                    yield task, run(*task)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = context.Pool(self._count, _start, (self._make, self._arguments))
        done = self._pool.imap_unordered(_run, tasks)
        for _ in tasks:
            try:
                yield done.next(timeout=max(0.0, deadline - time.monotonic()))
            except multiprocessing.TimeoutError:
                self.stop()
                return

    def stop(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None


def _start(make: Callable[..., Callable[..., Record]], arguments: tuple) -> None:
    _state["run"] = make(*arguments)


def _run(task: Task) -> tuple[Task, Record]:
    return task, _state["run"](*task)
