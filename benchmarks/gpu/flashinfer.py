"""Baseline: FlashInfer's cascade attention of two levels, with each of its backends that runs here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .arena import Arena
from .context import Context, LeftOut
from .processes import module, output_of
from .store import Record
from .workload import Decode

NAME = "flashinfer"
TEXT = "FlashInfer's two-level cascade over paged KV (pages of 16), the faster of its fa2 and fa3 backends"
BACKENDS = ("fa2", "fa3")
_PAGE = 16
_WORKSPACE = 256 * 2**20  # bytes
_TIMEOUT = 150.0  # s, for building and checking a backend: side by side fa2 takes 41 s, fa3 87 (16 cores)

Forms = dict[str, tuple[int, Callable[[], Callable[[], object]]]]


def builds(dry_run: bool) -> dict[str, Callable[[Context], Record]]:
    """What builds and checks each backend, ahead and once; nothing where FlashInfer is not installed."""
    return {} if dry_run or find_spec(NAME) is None else {_key(each): partial(build, each) for each in BACKENDS}


def build(backend: str, context: Context) -> Record:
    """Build a backend and check it.

    Raises:
        LeftOut: it can't be built in time, or is not right.
    """
    status, output = output_of(*module("flashinfer_check", backend), timeout=_TIMEOUT)
    if status != 0:
        raise LeftOut(f"can't be built or is wrong: {' '.join(output.split())[-300:]}")
    return {}


def forms(context: Context, shape: Decode) -> Forms:
    """One for each backend; none where FlashInfer is not installed."""
    plans: dict[str, Any] = {}  # of this shape, made once for all sets of buffers

    def form(backend: str) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            built = context.ahead.get(_key(backend), {"error": "not built in time"})
            why = built.get("left_out", built.get("error"))
            if why is not None:
                raise LeftOut(why)
            if backend not in plans:
                plans[backend] = plan(shape, context.device, backend)
            query, pages = buffers(context.arena, shape)
            return lambda: attend(*plans[backend], query, pages)

        return make

    return {each: (shape.bytes, form(each)) for each in BACKENDS} if builds(context.dry_run) else {}


def _key(backend: str) -> str:
    return f"{NAME} {backend}"


@cache
def _workspace(device: torch.device) -> Tensor:
    return torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)


def plan(shape: Decode, device: torch.device, backend: str) -> list[Any]:
    """The wrappers of the two levels, as FlashInfer's own cascade wrapper holds them: rows' own first."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    shared, own = shape.prefix // _PAGE, shape.own // _PAGE

    def integers(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    rows = torch.arange(shape.batch + 1, dtype=torch.int32, device=device)
    pages = torch.arange(shared + shape.batch * own, dtype=torch.int32, device=device)
    full = torch.full((shape.batch,), _PAGE, dtype=torch.int32, device=device)
    levels = [
        (rows, rows * own, pages[shared:], full),
        (integers(0, shape.batch), integers(0, shared), pages[:shared], full[:1]),
    ]
    wrappers = []
    for level in levels:
        wrapper = BatchPrefillWithPagedKVCacheWrapper(_workspace(device), "NHD", backend=backend)
        heads = (shape.heads, shape.kv_heads, shape.head_size, _PAGE)
        wrapper.plan(*level, *heads, causal=False, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
        wrappers.append(wrapper)
    return wrappers


def buffers(arena: Arena, shape: Decode) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Queries, and the pages of keys and of values: those of the segment first, then each row's."""
    pages = (shape.prefix + shape.batch * shape.own) // _PAGE
    query = arena.cut(shape.batch, shape.heads, shape.head_size)
    key, value = (arena.cut(pages, _PAGE, shape.kv_heads, shape.head_size) for _ in range(2))
    return query, (key, value)


def attend(own: Any, shared: Any, query: Tensor, pages: tuple[Tensor, Tensor]) -> Tensor:
    """The two levels, and their merge."""
    from flashinfer import merge_state_in_place

    out, lse = own.run(query, pages, return_lse=True)
    merge_state_in_place(out, lse, *shared.run(query, pages, return_lse=True))
    return out
