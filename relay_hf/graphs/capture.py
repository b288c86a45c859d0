"""CUDA graphs: captures the kernels that a function launches, and launches them again."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Protocol, TypeVar

import torch

_Result = TypeVar("_Result")

# Held during a capture, because captures of two threads would share the stream, and because the garbage collector is
# off in all threads meanwhile.
one_capture = threading.RLock()

# Before PyTorch 2.13 a capture concerns a device's generator of random numbers in all threads: while one thread
# captures, any other that draws gets an error ("Offset increment outside graph capture encountered unexpectedly").
_CAPTURES_ALONE = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
_generating: dict[object, int] = {}  # the thread of each call of generate()


class DeviceGraph(Protocol):
    """A sequence of kernels that can be launched again, on the same memory."""

    def capture(self, run: Callable[[], _Result]) -> _Result:
        """Capture the kernels that `run` launches, without running them. `replay` fills the tensors that it returns."""

    def replay(self) -> None:
        """Launch it."""

    def replay_beside(self) -> None:
        """Launch it so that it runs beside later kernels, until `join`."""

    def join(self) -> None:
        """Let later kernels wait for those that `replay_beside` launched."""


class CudaGraph:
    """A `torch.cuda.CUDAGraph` with memory of its own.

    Other threads may use the device meanwhile ("thread_local"). A capture that fails leaves the device, its streams and
    torch's allocator as they were.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()
        self._beside = torch.cuda.Stream(device)

    def capture(self, run: Callable[[], _Result]) -> _Result:
        """Capture `run`, which must not wait for the device; its kernels must have run once."""
        collecting = gc.isenabled()
        gc.disable()  # it might free a stream or an event, which is an error during a capture
        torch.cuda.synchronize(self._device)
        stream, pool = _stream(self._device), torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(stream), _workspace_of_its_own():
                try:
                    self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                    result = run()
                except BaseException:
                    self._abandon(stream, pool)
                    raise
                try:
                    self._graph.capture_end()
                except BaseException:
                    self._abandon(stream, pool, ended=True)
                    raise
            return result
        finally:
            if collecting:
                gc.enable()

    def replay(self) -> None:
        """Launch it on the current stream."""
        self._graph.replay()

    def replay_beside(self) -> None:
        """Launch it on a stream of its own, after all kernels that were launched on the current stream so far."""
        self._beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._beside):
            self._graph.replay()

    def join(self) -> None:
        """Let the current stream wait for the stream of `replay_beside`."""
        torch.cuda.current_stream(self._device).wait_stream(self._beside)

    def _abandon(self, stream: torch.cuda.Stream, pool: tuple, ended: bool = False) -> None:
        """Clean up after a capture that failed, because torch leaves its allocator and its generators in capture mode.

        `ended`: torch has ended the capture by itself.
        """
        if ended or not self._end():
            _abandoned.append(self._graph)  # the allocator may still refer to it
            with suppress(Exception):  # torch has ended this part too, or this version does it in another way
                torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        with suppress(Exception):  # a capture that succeeds lets the generators draw as before
            probe = torch.cuda.CUDAGraph()
            probe.capture_begin(capture_error_mode="thread_local")
            try:
                torch.zeros(1, device=self._device)
            finally:
                probe.capture_end()

    def _end(self) -> bool:
        """End a capture whose run has raised, and drop it. False where that fails too."""
        try:
            self._graph.capture_end()
            self._graph.reset()
        except Exception:
            return False
        return True


_abandoned: list[torch.cuda.CUDAGraph] = []


@contextmanager
def _workspace_of_its_own() -> Iterator[None]:
    """Within it cuBLAS takes its workspace from the graph's memory, so that two graphs can run at the same time."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
    clear()
    try:
        yield
    finally:
        clear()


@lru_cache(maxsize=16)
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a device's captures run."""
    return torch.cuda.Stream(device)


@contextmanager
def generating() -> Iterator[None]:
    """Within it this thread runs a generate() call, which may draw random numbers. It waits for a running capture."""
    call = object()
    try:
        with one_capture:
            _generating[call] = threading.get_ident()
        yield
    finally:
        _generating.pop(call, None)


def may_capture() -> bool:
    """Whether this thread may capture now, and as long as it holds `one_capture`."""
    return not _CAPTURES_ALONE or {*_generating.values()} <= {threading.get_ident()}


def supports(device: torch.device) -> bool:
    """Whether there are graphs on a device."""
    return device.type == "cuda" and torch.version.hip is None


def give_memory_back(device: torch.device) -> None:
    """Give unused memory of torch's allocator back to the device. The allocator does not do so during a capture."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def new_graph(device: torch.device) -> DeviceGraph:
    """An empty graph, on a device that supports graphs."""
    return CudaGraph(device)
