"""A device whose memory PyTorch holds: during a capture its allocator gives none back."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from relay_hf import patched

from .context import Context, LeftOut
from .generate_calls import RELAY, build, generate, inputs_of, stock_of
from .generate_seen import Seen
from .store import Record

_LEFT = 48 * 2**20  # bytes that are the device's own
_BLOCK, _LEAST = 2**30, 2**24  # bytes


def _held(context: Context) -> Record:
    """A call that captures, on a device that is full of blocks which nobody uses."""
    if context.dry_run:
        raise LeftOut("needs a GPU")
    model, inputs, seen = build("llama", context), inputs_of(context), Seen(context)
    stock = stock_of(model, inputs)
    with patched(model, RELAY):
        seen.compare("before", model, generate(model, inputs), stock)  # loads kernels, which takes memory too
        model.relay.clear()
        gc.collect()
        try:
            fill(context.device)
            left = torch.cuda.mem_get_info(context.device)[0]
            seen.compare("full", model, generate(model, inputs), stock)
        finally:
            torch.cuda.empty_cache()
    return seen.record() | {"left_bytes": left}


def fill(device: torch.device) -> None:
    """Let PyTorch's allocator hold all of a device but `_LEFT` bytes, in blocks that are free."""
    blocks, size = [], _BLOCK
    while size >= _LEAST:
        if torch.cuda.mem_get_info(device)[0] - size < _LEFT:
            size //= 2
            continue
        try:
            blocks.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:  # another process was faster
            size //= 2


CELLS: dict[str, Callable[[Context], Record]] = {"a device full of blocks that are free": _held}
