"""Changing a weight of both models between two passes, in ways that a kept prefix must not survive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .case import Case
from .models import Pair


@contextmanager
def changed(case: Case, pair: Pair) -> Iterator[Callable[[], None]]:
    """Gives a function that changes a weight as the case says; undone at the end."""
    parameters = [list(model.parameters()) for model in (pair.stock, pair.ours)]
    chosen = [each[case.number % len(each)] for each in parameters]
    kept = chosen[0].detach().clone()

    def change() -> None:
        for parameter in chosen:
            _change(parameter, case.change)

    try:
        yield change
    finally:
        if case.change is not None:
            for parameter in chosen:
                parameter.data.copy_(kept)


def _change(parameter: torch.nn.Parameter, how: str | None) -> None:
    with torch.no_grad():
        if how == "add_":
            parameter.add_(0.1)
        elif how == "data.mul_":
            parameter.data.mul_(1.5)
        elif how == "optimizer":
            parameter.grad = torch.full_like(parameter, 0.5)
            torch.optim.AdamW([parameter], lr=0.1, fused=True).step()  # leaves _version and data_ptr as they are
            parameter.grad = None
