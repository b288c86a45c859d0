"""What cells are run with, in this process or in a worker."""

from __future__ import annotations

from functools import cached_property

import torch

from .arena import Arena
from .clock import CpuClock, CudaClock, clock_for
from .machine import device_of
from .workload import Ceilings

FATAL = ("CUDA error", "Triton Error [CUDA]")  # of a message: nothing runs on the device any more


class LeftOut(Exception):
    """A cell that can't be run here; the message says why."""


class Context:
    """Device and clock, and an arena of `dtype` that is made at its first use."""

    def __init__(self, dry_run: bool, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dry_run = dry_run
        self.dtype = dtype
        self.device = device_of(dry_run)
        self.clock: CudaClock | CpuClock = clock_for(self.device)
        self.ceilings: Ceilings | None = None

    @cached_property
    def arena(self) -> Arena:
        """Where the buffers of what is timed lie."""
        return Arena.for_measuring(self.dry_run, self.dtype)

    @property
    def cache_bytes(self) -> int:
        """Of the L2 cache."""
        return 0 if self.dry_run else torch.cuda.get_device_properties(self.device).L2_cache_size

    def release(self) -> None:
        """Give the memory of a section back."""
        self.__dict__.pop("arena", None)
        if not self.dry_run:
            torch.cuda.empty_cache()
