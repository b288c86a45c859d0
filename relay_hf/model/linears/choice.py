"""Which linear layers of a model oneDNN's operator computes in its relayed calls, and why not others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from ..compiling import is_compiled_inside
from ..known_code import is_known_function
from ..modules import class_of
from . import onednn
from .chosen import Linears
from .layers import SWITCHED

# The least multiplications for which the operator is worth its call. With tiny operands it takes 12 us, PyTorch's own
# 2. Of 32 rows through a weight of 256 x 128 PyTorch took 16 us and oneDNN 19, through one of 256 x 256 28 and 24.
LEAST_WORK = 2**20

# What linear layers ran when this library was imported.
_FORWARDS, _LINEAR = {kind: kind.forward for kind in SWITCHED}, functional.linear


def choose(
    modules: Sequence[nn.Module],
    device: torch.device,
    dtype: torch.dtype,
    asked: Literal["auto", True, False],
) -> Linears:
    """The layers of a model that computes on `device` in `dtype`; `asked`: see `RelayConfig.linears`."""
    if asked is False:
        return Linears(why_not="the option linears is False")
    if device.type != "cpu":
        return Linears(why_not=f"the model computes on {device.type}, and the operator is for a CPU")
    if dtype is not torch.float32:
        return Linears(why_not=f"the model computes in {str(dtype).partition('.')[2]}, and the operator is for float32")
    found = {each: size for each in modules if (size := _plain_weights(each))}
    if not found:
        return Linears(why_not="the model has no plain linear layers")
    if is_compiled_inside(modules):
        return Linears(why_not="torch.compile has compiled the model, or a part of it")
    if not _stand_for_themselves():
        return Linears(why_not="PyTorch's linear layer, or Transformers', was replaced")
    fault = onednn.fault()
    if fault:
        return Linears(why_not=fault)
    if asked is True:
        return Linears([*found], [*found.values()])
    speedup = onednn.speedup(torch.get_num_threads())
    if speedup < onednn.FASTER:
        return Linears(why_not=f"oneDNN is not faster on this processor ({speedup:.2f} times PyTorch's speed)")
    return Linears([*found], [*found.values()], least_work=LEAST_WORK, speedup=speedup)


def _plain_weights(module: nn.Module) -> int:
    """The number of weights of a layer that is of one of the classes, runs its class's forward, and has a plain weight
    in float32; 0 for any other module."""
    weight = module._parameters.get("weight") if class_of(module) in SWITCHED else None
    if type(weight) is not nn.Parameter or weight.dtype is not torch.float32 or "forward" in module.__dict__:
        return 0
    return weight.numel()


def _stand_for_themselves() -> bool:
    """Whether the layers' forwards, and the function that they call, are those of PyTorch and Transformers."""
    forwards = all(kind.forward is forward and is_known_function(forward) for kind, forward in _FORWARDS.items())
    return forwards and functional.linear is _LINEAR and is_known_function(_LINEAR)
