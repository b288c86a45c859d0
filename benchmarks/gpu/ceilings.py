"""The two ceilings: what a large copy and a large matrix product reach on this chip, on random data."""

from __future__ import annotations

import torch

from .context import Context
from .store import Record
from .workload import Ceilings

_COPY_BYTES = 2**32
_MATRIX_SIZE = 8192


def cells(dry_run: bool) -> dict[str, str]:
    """The two."""
    return {name: name for name in ("copy", "matrix product")}


def run(context: Context, name: str) -> Record:
    """Measure one of the two."""
    return _copy(context) if name == "copy" else _matrix_product(context)


def read(cells: dict[str, Record]) -> Ceilings:
    """The ceilings of two records."""
    return Ceilings(cells["copy"]["bytes_per_second"], cells["matrix product"]["flop_per_second"])


def _copy(context: Context) -> Record:
    count = 2**12 if context.dry_run else _COPY_BYTES
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    seconds = context.clock.eager(lambda: target.copy_(source))
    return {"bytes": 2 * count, "seconds": seconds, "bytes_per_second": 2 * count / seconds}


def _matrix_product(context: Context) -> Record:
    size = 32 if context.dry_run else _MATRIX_SIZE
    left, right = torch.randn(2, size, size, device=context.device).bfloat16()
    out = torch.empty_like(left)
    seconds = context.clock.eager(lambda: torch.mm(left, right, out=out))
    return {"flop": 2 * size**3, "seconds": seconds, "flop_per_second": 2 * size**3 / seconds}
