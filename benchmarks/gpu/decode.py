"""Workload K: device time of our operator and of the baselines beside the floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from relay_hf.kernels.arguments import ScoreOptions
from relay_hf.kernels.plan import Plan
from relay_hf.kernels.segment import Segment
from relay_hf.kernels.triton import relay_attention

from . import baselines, flashinfer, workload
from .arena import Arena
from .context import Context, LeftOut
from .store import Record
from .workload import Decode

Call = Callable[[], object]
_ROTATED = 8  # times the L2 cache, that the buffers of a graph take together
_MOST_CALLS = 512  # of a graph
_SHORTEST_GRAPH = 2e-3  # s


def cells(dry_run: bool) -> dict[str, Decode]:
    """Workload K."""
    return workload.cells(dry_run)


def ahead(dry_run: bool) -> dict[str, Callable[[Context], Record]]:
    """What workers do before anything is timed: build the baselines, then compile what each shape launches."""
    shapes = {key: partial(_compile, shape) for key, shape in cells(dry_run).items()}
    return flashinfer.builds(dry_run) | shapes


def run(context: Context, shape: Decode) -> Record:
    """Time a shape."""
    ceilings = context.ceilings
    if ceilings is None:
        raise LeftOut("the floor needs the ceilings: run that section first")

    def time(bytes_: int, make: Callable[[], Call]) -> float:
        return time_calls(context, bytes_, bytes_ / ceilings.bandwidth, make)

    floor, bound = shape.floor(ceilings)
    ours = time_calls(context, shape.bytes, floor, lambda: our_call(context.arena, shape, context.device))
    record = {
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "batch": shape.batch,
        "prefix": shape.prefix,
        "stacked": shape.stacked,
        "bound": bound,
        "floor_us": 1e6 * floor,
        "ours_us": 1e6 * ours,
        "share_of_floor": floor / ours,
        "share_of_matrix_rate": shape.flop / ours / ceilings.matrix_rate,
    }
    for baseline in baselines.ALL:
        record |= {f"{baseline.NAME}_us": None, f"{baseline.NAME}_forms": {}}
    context.save(dict(record))  # a baseline may take this process with it
    for baseline in baselines.ALL:
        times = baselines.times(context, shape, baseline, time)
        numbers = [each for each in times.values() if isinstance(each, float)]
        record |= {f"{baseline.NAME}_us": min(numbers, default=None), f"{baseline.NAME}_forms": times}
    return record


def time_calls(context: Context, bytes_: int, least: float, make: Callable[[], Call]) -> float:
    """Seconds of a call that `make` prepares on buffers of its own, `bytes_` of them.

    A graph takes its calls from so many sets of buffers that the L2 cache holds none when its turn comes again, and is
    long enough (`least` seconds a call) for events.
    """
    context.arena.reset()
    room = min(_MOST_CALLS, max(1, context.arena.bytes // (bytes_ + 2**16)))
    wanted = math.ceil(_ROTATED * context.cache_bytes / bytes_)
    sets = [make() for _ in range(min(room, max(2, wanted)))]
    calls = min(_MOST_CALLS, max(len(sets), math.ceil(_SHORTEST_GRAPH / least)))
    return context.clock.median([sets[i % len(sets)] for i in range(calls)])


def our_call(arena: Arena, shape: Decode, device: torch.device, length: int = 1) -> Call:
    """One layer, `length` queries a row; own lengths are read from device memory, as in generate()."""
    size = shape.head_size
    key, value = (arena.cut(shape.kv_heads, shape.prefix, size) for _ in range(2))
    own_key, own_value = (arena.cut(shape.batch, shape.kv_heads, shape.own, size) for _ in range(2))
    query = arena.cut(shape.batch, length, shape.heads, size).transpose(1, 2)
    own_length = torch.full((shape.batch,), shape.own, device=device)
    plan = Plan(shape.batch, length, shape.own, shared_length=shape.prefix, own_length=own_length)
    segments, options = [Segment(key, value)], ScoreOptions(size**-0.5)
    return lambda: relay_attention(plan, query, segments, own_key, own_value, options)


def _compile(shape: Decode, context: Context) -> Record:
    arena = Arena.for_measuring(context.dry_run, torch.bfloat16, most=shape.bytes + 2**17)
    our_call(arena, shape, context.device)()
    return {}
