"""Builds a backend of FlashInfer and checks what it says: `python -m benchmarks.gpu.flashinfer_check fa2`.

In a process of its own: building may take minutes, and what fails here breaks nothing there.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F

from .arena import Arena
from .clock import CudaClock
from .flashinfer import BACKENDS, attend, buffers, plan
from .machine import device_of
from .workload import Decode

_TOLERANCE = 2e-2  # relative, in bf16
_SHAPE = Decode(8, 2, batch=3, prefix=64, own=32)


def main() -> int:
    """1 if it is not attention over segment and own, or can't be captured: its figures would mean nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.flashinfer_check", description=__doc__)
    parser.add_argument("backend", choices=BACKENDS)
    backend, device = parser.parse_args().backend, device_of(dry_run=False)
    wrappers = plan(_SHAPE, device, backend)
    query, pages = buffers(Arena.for_measuring(False, torch.bfloat16, most=2**24), _SHAPE)
    error = _error(attend(*wrappers, query, pages), query, pages)
    CudaClock().median([lambda: attend(*wrappers, query, pages)])
    print(f"differs from attention by {error:.1e}")
    return 0 if error < _TOLERANCE else 1


def _error(out: torch.Tensor, query: torch.Tensor, pages: tuple[torch.Tensor, torch.Tensor]) -> float:
    rows = []
    for row in range(_SHAPE.batch):
        first = _SHAPE.prefix + row * _SHAPE.own
        tokens = [*range(_SHAPE.prefix), *range(first, first + _SHAPE.own)]
        key, value = (
            each.flatten(0, 1)[tokens].transpose(0, 1).repeat_interleave(_SHAPE.group, dim=0) for each in pages
        )
        rows.append(F.scaled_dot_product_attention(query[row][:, None], key, value)[:, 0])
    return float((out - torch.stack(rows)).float().norm() / out.float().norm())


if __name__ == "__main__":
    sys.exit(main())
