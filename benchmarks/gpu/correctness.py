"""Right on this chip: random calls of many shapes against the float64 reference, and what a GPU alone can show.

A call passes if it is no further from the reference than `FACTOR` (of the dtype) times stock attention in the same
dtype on the same inputs, by root mean square and (twice that) by the largest error; where stock is exact by chance,
than half a unit in the last place. Further: all of the output written and finite where memory was NaN before, and the
same bits again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import special
from .cases import FACTOR, Case, grid
from .context import Context
from .inputs import Inputs
from .store import Record


def cells(dry_run: bool) -> dict[str, Callable[[Context], Record]]:
    """Every check by name."""
    if dry_run:
        small = {"rows": 2, "head_size": 16, "columns": 7, "segments": ((19, None),), "dtype": "float32"}
        found = [Case(**small), Case(**small | {"dtype": "float16", "length": 40, "columns": 43})]
    else:
        found = grid()
    return {**special.cells(check), **{case.key: partial(check_case, case) for case in found}}


def run(context: Context, cell: Callable[[Context], Record]) -> Record:
    """Run a check."""
    return cell(context)


def check_case(case: Case, context: Context) -> Record:
    """A case on inputs that are new in every run, and can be drawn again by their seed."""
    seed = secrets.randbits(31)
    inputs = Inputs.draw(case, context.device, seed)
    special.poison(context.device)
    out = inputs.ours()
    again = all(torch.equal(inputs.ours(), out) for _ in range(2))
    record = check(inputs, out)
    return {"seed": seed, **record, "same_bits_again": again, "passed": record["passed"] and again}


def check(inputs: Inputs, out: Tensor) -> Record:
    """Whether `out` is as near to exact as stock is."""
    real, exact = inputs.real(), inputs.exact()
    ours = _errors(out, exact, real)
    stock = _errors(inputs.stock(), exact, real)
    rounding = torch.finfo(out.dtype).eps / 2
    scale = _errors(torch.zeros_like(exact), exact, real)
    factor = FACTOR[str(out.dtype).removeprefix("torch.")]
    limits = [max(factor * stock[0], rounding * scale[0]), max(2 * factor * stock[1], rounding * scale[1])]
    finite = bool(out.isfinite().all())
    return {
        "rms_error": ours[0],
        "stock_rms_error": stock[0],
        "max_error": ours[1],
        "stock_max_error": stock[1],
        "finite": finite,
        "passed": finite and all(error <= limit for error, limit in zip(ours, limits, strict=True)),
    }


def _errors(out: Tensor, exact: Tensor, real: Tensor) -> tuple[float, float]:
    """Root mean square and largest error."""
    error = torch.where(real, out.double() - exact, 0.0)
    return float(error.square().mean().sqrt()), float(error.abs().max())
