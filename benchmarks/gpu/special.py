"""Checks that are more than a shape: a segment of more than 2**31 elements, CUDA graphs, races."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .cases import Case
from .context import Context, LeftOut
from .inputs import Inputs
from .store import Record

Check = Callable[[Inputs, torch.Tensor], Record]

_LONG = Case(rows=2, kv_heads=8, group=1, head_size=128, segments=((2_700_001, None),), dtype="float16")
_LONG_BYTES = 40 * 2**30  # at the most, with the reference of one head
_RACES = (
    Case(rows=33, kv_heads=8, group=4, head_size=128, segments=((8191, None), (515, (1, 3, 32))), columns=129),
    Case(rows=3, kv_heads=8, group=4, head_size=128, segments=((1031, None),), columns=300, length=257),
    Case(rows=3, kv_heads=8, group=4, head_size=128, segments=((8191, None), (515, (1,))), columns=1100),
)
_GRAPHS = tuple(
    Case(rows=5, kv_heads=2, group=4, head_size=128, segments=((515, None), (77, (0, 3))), columns=columns)
    for columns in (200, 600)
)
_REPEATS = 50


def cells(check: Check) -> dict[str, Callable[[Context], Record]]:
    """By name; `check` compares an output with the reference."""
    return {
        "segment of more than 2**31 elements": partial(_long_segment, check),
        "graph replayed with other lengths and inputs": partial(_graph, check, _GRAPHS[0]),
        "graph replayed with other lengths and inputs, own tokens split": partial(_graph, check, _GRAPHS[1]),
        "same bits 50 times, decode": partial(_repeats, _RACES[0]),
        "same bits 50 times, prefill": partial(_repeats, _RACES[1]),
        "same bits 50 times, own tokens split": partial(_repeats, _RACES[2]),
    }


def poison(device: torch.device) -> None:
    """Leave NaN in the memory that the allocator hands out next, small and large."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        blocks = [torch.full((count,), float("nan"), device=device) for count in (*[2**18] * 8, 2**26)]
        del blocks


def _long_segment(check: Check, context: Context) -> Record:
    """Offsets that overflow 32 bits, seen at the first and the last head."""
    if context.dry_run or torch.cuda.mem_get_info(context.device)[0] < _LONG_BYTES:
        raise LeftOut("needs a GPU with 40 GiB free")
    inputs = Inputs.draw(_LONG, context.device, seed=1)
    out = inputs.ours()
    heads = {head: check(inputs.one_head(head), out[:, :, head : head + 1]) for head in (0, _LONG.kv_heads - 1)}
    elements = inputs.segments[0].key.numel()
    return {"elements": elements, "heads": heads, "passed": all(each["passed"] for each in heads.values())}


def _graph(check: Check, case: Case, context: Context) -> Record:
    """A graph captured at one own length gives, at longer ones and on new inputs, what an eager call gives."""
    if context.dry_run:
        raise LeftOut("needs a GPU")
    inputs = Inputs.draw(case, context.device, seed=2)
    buffers = [inputs.query, inputs.key, inputs.value]
    inputs.own_length = torch.full((case.rows,), 3, device=context.device)
    inputs.own_start = torch.zeros_like(inputs.own_length)
    inputs.ours()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = inputs.ours()

    steps = []
    for step, length in enumerate((3, 4, 64, 129, case.columns)):
        fresh = Inputs.draw(case, context.device, seed=3 + step)
        for buffer, other in zip(buffers, (fresh.query, fresh.key, fresh.value), strict=True):
            buffer.copy_(other)
        rows = torch.arange(case.rows, device=context.device)
        inputs.own_length.copy_((length - rows).clamp(min=1))
        inputs.own_start.copy_(inputs.own_length // 3)
        replayed.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        steps.append({"same_bits_as_eager": torch.equal(inputs.ours(), replayed), **check(inputs, replayed)})
    return {"steps": steps, "passed": all(step["same_bits_as_eager"] and step["passed"] for step in steps)}


def _repeats(case: Case, context: Context) -> Record:
    """A race would show as bits that move."""
    if context.dry_run:
        raise LeftOut("needs a GPU")
    inputs = Inputs.draw(case, context.device, seed=4)
    first = inputs.ours()
    same = sum(torch.equal(inputs.ours(), first) for _ in range(_REPEATS))
    return {"repeats": _REPEATS, "same_bits": same, "passed": same == _REPEATS}
