"""Worker processes: compiling takes most of the time of what is not timed, and there are more cores than one."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .processes import end
from .store import Record

Task = tuple[Any, ...]
Done = tuple[Task, Record]
DIED = "the process that ran it died"
_state: dict[str, Any] = {}


class Lost(Exception):
    """Raised for a task by a process that can run none any more: it is run by another."""


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
        self._pool: ProcessPoolExecutor | None = None

    def run(self, tasks: Sequence[Task], deadline: float, at_once: int | None = None) -> Iterator[Done]:
        """Tasks and their records as they are done; what is not done at `deadline` (of `time.monotonic`) is stopped.

        Of the tasks `at_once` run side by side; None: as many as there are processes.
        The record of a task that raises, or whose process dies, has an `error`.
        """
        if self._count == 0:
            run = self._make(*self._arguments)
            for task in tasks:
                if time.monotonic() < deadline:
                    yield task, run(*task)
            return
        waiting = deque(tasks)
        while waiting and time.monotonic() < deadline:
            # Alone, each of the tasks that ran when a process died shows whether it was the cause.
            for task in (yield from self._run(waiting, at_once or self._count, deadline)):
                alone = deque([task])
                while alone and time.monotonic() < deadline:
                    if (yield from self._run(alone, 1, deadline)):
                        yield task, {"error": DIED}

    def stop(self) -> None:
        """End the processes."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            end(list(pool._processes or ()))
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, waiting: deque[Task], at_once: int, deadline: float) -> Generator[Done, None, list[Task]]:
        """Run what is waiting, as far as this pool goes; the tasks that ran when a process of it died."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, context, _start, (self._make, self._arguments))
        running: dict[Future[Record], Task] = {}
        died: list[Task] = []
        fit = True
        while running or (fit and waiting):
            while fit and waiting and len(running) < at_once:
                task = waiting.popleft()
                running[_submit(self._pool, task)] = task
            done = wait(running, max(0.0, deadline - time.monotonic()), FIRST_COMPLETED).done
            if not done:
                waiting.clear()
                fit = False
                break
            for future in done:
                task, error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    died.append(task)
                elif isinstance(error, Lost):
                    waiting.appendleft(task)
                else:
                    yield task, {"error": f"{type(error).__name__}: {error}"} if error else future.result()
                fit = fit and not isinstance(error, (BrokenProcessPool, Lost))
        if not fit:
            self.stop()
        return died


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Record]:
    try:
        return pool.submit(_call, task)
    except BrokenProcessPool as error:  # seen here before it is seen by what runs
        future: Future[Record] = Future()
        future.set_exception(error)
        return future


def _start(make: Callable[..., Callable[..., Record]], arguments: tuple) -> None:
    _state["make"] = make, arguments


def _call(task: Task) -> Record:
    if "run" not in _state:
        make, arguments = _state["make"]
        _state["run"] = make(*arguments)
    return _state["run"](*task)
