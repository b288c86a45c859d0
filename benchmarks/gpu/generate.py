"""Whole generate() calls on this chip, replayed as CUDA graphs where that is promised: their tokens are stock's.

Models are tiny, of random weights, in float32 without TensorFloat-32, so that each token must be the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging

from . import generate_families, generate_memory, generate_next, generate_trouble
from .context import Context
from .store import Record

ALONE = frozenset(generate_memory.CELLS)


def cells(dry_run: bool) -> dict[str, Callable[[Context], Record]]:
    """Every check by name."""
    return {
        **generate_next.CELLS,
        **generate_trouble.CELLS,
        **generate_families.cells(dry_run),
        **generate_memory.CELLS,
    }


def run(context: Context, cell: Callable[[Context], Record]) -> Record:
    """Run a check."""
    logging.set_verbosity_error()
    with _settings():
        return cell(context)


@contextmanager
def _settings() -> Iterator[None]:
    """No TensorFloat-32, neither in products nor in convolutions, where it is PyTorch's default; one thread of the CPU.

    Tiny models gain nothing from more, and lose much where other workers need the cores.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.set_num_threads(before[2])
