"""Timing: device time of a CUDA graph's replays; wall time on a CPU, where it only stands in for it."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

Call = Callable[[], object]


class CudaClock:
    """Device time by events."""

    def __init__(self) -> None:
        gc.freeze()  # a capture collects garbage first: without this, 0.1 s for everything that is loaded
        self._failed: list[torch.cuda.CUDAGraph] = []  # torch's allocator may still ask them

    def median(self, calls: Sequence[Call], spend: float = 0.03) -> float:
        """Seconds of one of `calls`, which are captured into one graph; its replays are timed for `spend` seconds.

        As long as the graph runs, nothing on the host is waited for: the gaps are those between kernels on the device.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is compiled, planned or copied at a first call must not be captured
            for call in (calls[0], calls[0], calls[-1]):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with self._capture(graph):
            for call in calls:
                call()
        graph.replay()
        (once,) = self._times(graph.replay, 1)
        rounds = min(50, max(5, int(spend / once)))
        return statistics.median(self._times(graph.replay, rounds)) / len(calls)

    def eager(self, call: Call, rounds: int = 9) -> float:
        """Median seconds of a call that keeps the device busy by itself."""
        call()
        return statistics.median(self._times(call, rounds))

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()

    @contextmanager
    def _capture(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """`torch.cuda.graph`, and where that fails the end of the capture, which torch leaves half done.

        It would stay on the capture's stream, and its allocator would refuse to give memory back from then on.
        """
        stream, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool):
                yield
        except BaseException:
            self._failed.append(graph)
            torch.cuda.set_stream(stream)
            with suppress(Exception):  # ended after all, or not to be ended so in this version
                torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            raise

    def _times(self, call: Call, rounds: int) -> list[float]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(marks)]


class CpuClock:
    """Wall time of one call each: the way of a dry run, whose times mean nothing."""

    def median(self, calls: Sequence[Call], spend: float = 0.0) -> float:
        """Seconds of the first of `calls`."""
        return self.eager(calls[0], 1)

    def eager(self, call: Call, rounds: int = 3) -> float:
        """Median seconds of a call."""
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def synchronize(self) -> None:
        """Nothing to wait for."""


def clock_for(device: torch.device) -> CudaClock | CpuClock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()
