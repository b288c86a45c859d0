"""What cells are run with, in this process or in a worker."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property

import torch

from .arena import Arena
from .clock import CpuClock, CudaClock, clock_for
from .machine import device_of
from .store import Record
from .workload import Ceilings


class LeftOut(Exception):
    """A cell that can't be run here; the message says why."""


class Context:
    """Device and clock, and an arena of `dtype` that is made at its first use.

    Attributes:
        ceilings: what the chip reaches, once that is measured.
        ahead: the records of what workers did ahead of a section, by key.
        save: stores what a cell has so far, in case it does not come to its end.
        broken_by: what the device computes nothing any more since, if anything.
        deadline: when the section's time is over, of `time.monotonic`.
        before: what the file has of the cell that is run.
        contenders: those of generate() end to end that are asked for; None: all.
    """

    def __init__(self, dry_run: bool, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dry_run = dry_run
        self.dtype = dtype
        self.device = device_of(dry_run)
        self.clock: CudaClock | CpuClock = clock_for(self.device)
        self.ceilings: Ceilings | None = None
        self.ahead: dict[str, Record] = {}
        self.save: Callable[[Record], None] = lambda record: None
        self.broken_by: str | None = None
        self.deadline = math.inf
        self.before: Record | None = None
        self.contenders: Sequence[str] | None = None

    @cached_property
    def arena(self) -> Arena:
        """Where the buffers of what is timed lie."""
        return Arena.for_measuring(self.dry_run, self.dtype)

    @property
    def cache_bytes(self) -> int:
        """Of the L2 cache."""
        return 0 if self.dry_run else torch.cuda.get_device_properties(self.device).L2_cache_size

    def free_bytes(self) -> int:
        """Of the device's memory, with what the allocator holds for later; without end in a dry run."""
        if self.dry_run:
            return 2**50
        reserved = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + reserved

    def peak_bytes(self) -> int:
        """The most that was allocated at once since the last call of this; 0 in a dry run."""
        if self.dry_run:
            return 0
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def probe(self, what: str) -> None:
        """See whether the device still computes now that `what` has failed: many a CUDA error ends one call only."""
        for _ in range(2):  # the first may be told of the failure that is over
            with suppress(Exception):
                self.clock.synchronize()
                torch.zeros(1, device=self.device).add_(1).item()
                return
        self.broken_by = what

    def release(self) -> None:
        """Give the memory of a section back."""
        self.__dict__.pop("arena", None)
        if not self.dry_run:
            with suppress(RuntimeError):  # of a device that is broken
                torch.cuda.empty_cache()
