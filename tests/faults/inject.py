"""Faults: what goes wrong, and the point at which it does, once."""

from __future__ import annotations

import linecache
import random
import sys
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import relay_hf
from tests.support.counts import count_tried

OURS = str(Path(relay_hf.__file__).parent)

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4096 bytes. Error code 12 (Cannot allocate memory)"
)

# The end of `Relay.open_call` and of `running`.
LAST = ("listener.set(before)", "active_runner.set(runner)", "self._open.discard(call)", "call.runner = None")

# Made where they are raised: one that is made before would hold on to the frames that it went through.
KINDS = {
    "error": lambda: ValueError("a fault"),
    "interrupt": lambda: KeyboardInterrupt("a fault"),
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu memory": lambda: RuntimeError(CPU_MESSAGE),
}


NAMES = {"error": "errors", "interrupt": "interrupts", "memory": "lack of memory", "cpu memory": "lack of memory"}


class Fault:
    """Raises an exception of a kind at the `at`-th time that it is asked, and never else; None: never.

    Attributes:
        asked: how often it was asked.
        where: the functions of relay_hf that ran when it raised, the innermost first.
    """

    def __init__(self, kind: str, at: int | None) -> None:
        self.kind, self.at, self.asked = kind, at, 0
        self.where: list[str] | None = None

    def __call__(self) -> None:
        self.asked += 1
        if self.asked - 1 == self.at:
            count_tried(f"faults injected, {NAMES[self.kind]}")
            self.where = [code.co_name for code, _ in stack() if code.co_filename.startswith(OURS)]
            raise KINDS[self.kind]()


class Operations(TorchDispatchMode):
    """Within it every operation of PyTorch asks the fault first; `sites`: where each stands in the sources."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault
        self.sites: list[Hashable] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.fault.at is None:
            self.sites.append(site())
        self.fault()
        return operation(*args, **(kwargs or {}))


class Lines:
    """Within it every line of relay_hf that runs asks the fault first; `sites`: which line each was.

    All but those of `with`, which come again when a block is left, where Python lets no signal in before `__exit__`,
    and of `try`, which do nothing, so that none is let in there; and the last ones of a call, which undo it: nothing is
    behind them that could.
    """

    def __init__(self, fault: Fault, under: str = OURS) -> None:
        self.fault, self.under = fault, under
        self.sites: list[Hashable] = []

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *args: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self.under) else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and not is_spared(frame.f_code.co_filename, frame.f_lineno):
            if self.fault.at is None:
                self.sites.append((frame.f_code, frame.f_lineno))
            self.fault()
        return self._line


@cache
def is_spared(path: str, line: int) -> bool:
    return linecache.getline(path, line).lstrip().startswith(("with ", "try:", *LAST))


def stack() -> list[tuple[Any, int]]:
    """Code and line of every frame, the innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return found


def site() -> Hashable:
    """The innermost lines of relay_hf and of the model that lead to here."""
    frames = stack()
    ours = next(((code, line) for code, line in frames if code.co_filename.startswith(OURS)), None)
    model = next(((code, line) for code, line in frames if "/transformers/" in code.co_filename), None)
    return ours, model


def one_of_each(sites: list[Hashable], seed: int, most: int | None = None) -> list[int]:
    """For each site one of the times that it was come by, drawn at random; of more than `most` sites, as many."""
    times: dict[Hashable, list[int]] = {}
    for index, where in enumerate(sites):
        times.setdefault(where, []).append(index)
    draw = random.Random(seed)
    chosen = [draw.choice(indices) for indices in times.values()]
    return sorted(chosen if most is None or len(chosen) <= most else draw.sample(chosen, most))
