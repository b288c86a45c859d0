"""Baseline: FlashInfer's cascade attention of two levels, with each of its backends that runs here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import Context
from .workload import Decode

NAME = "flashinfer"
TEXT = "FlashInfer's two-level cascade over paged KV (pages of 16), the faster of its fa2 and fa3 backends"
_PAGE = 16
_WORKSPACE = 256 * 2**20  # bytes
_TOLERANCE = 2e-2  # relative, in bf16

Forms = dict[str, tuple[int, Callable[[], Callable[[], object]]]]


def forms(context: Context, shape: Decode) -> Forms:
    """One for each backend; none where FlashInfer is not installed."""
    if context.dry_run or find_spec("flashinfer") is None:
        return {}
    plans: dict[str, Any] = {}  # of this shape, made once for all sets of buffers

    def form(backend: str) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            if backend not in plans:
                _check(context, backend)
                plans[backend] = _plan(shape, context.device, backend)
            query, pages = _buffers(context, shape)
            return lambda: _attend(*plans[backend], query, pages)

        return make

    return {backend: (shape.bytes, form(backend)) for backend in ("fa2", "fa3")}


@cache
def _workspace(device: torch.device) -> Tensor:
    return torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)


def _plan(shape: Decode, device: torch.device, backend: str) -> list[Any]:
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


def _buffers(context: Context, shape: Decode) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Queries, and the pages of keys and of values: those of the segment first, then each row's."""
    pages = (shape.prefix + shape.batch * shape.own) // _PAGE
    query = context.arena.cut(shape.batch, shape.heads, shape.head_size)
    key, value = (context.arena.cut(pages, _PAGE, shape.kv_heads, shape.head_size) for _ in range(2))
    return query, (key, value)


def _attend(own: Any, shared: Any, query: Tensor, pages: tuple[Tensor, Tensor]) -> Tensor:
    from flashinfer import merge_state_in_place

    out, lse = own.run(query, pages, return_lse=True)
    merge_state_in_place(out, lse, *shared.run(query, pages, return_lse=True))
    return out


def _check(context: Context, backend: str) -> None:
    """See that what will be timed is attention over segment and own: a baseline that is wrong says nothing.

    Raises:
        RuntimeError: it is not.
    """
    shape = Decode(8, 2, batch=3, prefix=64, own=32)
    query, pages = _buffers(context, shape)
    out = _attend(*_plan(shape, context.device, backend), query, pages)
    rows = []
    for row in range(shape.batch):
        first = shape.prefix + row * shape.own
        tokens = [*range(shape.prefix), *range(first, first + shape.own)]
        key, value = (
            each.flatten(0, 1)[tokens].transpose(0, 1).repeat_interleave(shape.group, dim=0) for each in pages
        )
        rows.append(F.scaled_dot_product_attention(query[row][:, None], key, value)[:, 0])
    error = float((out - torch.stack(rows)).float().norm() / out.float().norm())
    if not error < _TOLERANCE:
        raise RuntimeError(
            f"FlashInfer's {backend} differs from attention by {error:.1e}: its figures would mean nothing"
        )
