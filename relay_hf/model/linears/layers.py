"""Linear layers of PyTorch and of Transformers while a relayed forward runs: oneDNN's operator computes them.

A layer gets another class for the time of a forward, as PyTorch's own parametrizations and FSDP do it. Its instance
does not change, so a copy or a pickle that another thread makes meanwhile is of the layer as it was. In a thread that
runs no such forward, a layer computes what its own class does.
"""

from __future__ import annotations

import copyreg
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import STAND_INS, class_of
from ..upstream.linears import TransposedLinear
from . import onednn

# The fewest multiplications of a product for which the operator is used, by the forwards that this thread runs.
least_work: ContextVar[tuple[tuple[object, int], ...]] = ContextVar("relay_hf_linears", default=())


class SwitchedLinear(nn.Linear):
    """An nn.Linear that oneDNN may compute."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer of x `[..., inputs]`: `[..., outputs]`."""
        found = _product(self, x)
        return super().forward(x) if found is None else found

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A copy and a pickle are of the plain layer."""
        return _as_plain(self)

    def _get_name(self) -> str:
        return nn.Linear.__name__


class SwitchedTransposedLinear(TransposedLinear):
    """A linear layer of GPT-2 that oneDNN may compute: its weight is `[inputs, outputs]`."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer of x `[..., inputs]`: `[..., outputs]`."""
        found = _product(self, x, transposed=True)
        return super().forward(x) if found is None else found

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A copy and a pickle are of the plain layer."""
        return _as_plain(self)


SWITCHED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SwitchedLinear,
    TransposedLinear: SwitchedTransposedLinear,
}
STAND_INS.update({stand_in: plain for plain, stand_in in SWITCHED.items()})


def _product(layer: nn.Module, x: Tensor, transposed: bool = False) -> Tensor | None:
    """The layer of x by oneDNN; None if this thread runs no relayed forward, or the operands are not plain."""
    if torch.compiler.is_dynamo_compiling():
        return None  # a compiled step has an operation of its own in the place of PyTorch's
    held, members = least_work.get(), layer._parameters
    weight, bias = members.get("weight"), members.get("bias")
    if not held or "bias" not in members or type(x) is not Tensor or type(weight) is not nn.Parameter:
        return None
    if bias is not None and not (type(bias) is nn.Parameter and bias.dtype is torch.float32):
        return None
    if not (x.dtype is torch.float32 is weight.dtype and x.is_cpu and weight.is_cpu):
        return None
    as_used = weight.T if transposed else weight
    outputs, inputs = as_used.shape
    if x.dim() == 0 or x.shape[-1] != inputs or x.numel() * outputs < held[-1][1]:
        return None  # the layer's own code raises its own error for other sizes
    return onednn.linear(x, as_used, bias)


def _as_plain(layer: nn.Module) -> tuple[Any, ...]:
    return copyreg._reconstructor, (class_of(layer), object, None), layer.__dict__  # type: ignore[attr-defined]
