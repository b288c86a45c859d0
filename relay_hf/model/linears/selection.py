"""Who computes a model's linear layers: oneDNN's operator while a relayed forward runs, PyTorch's own otherwise.

Each layer has a set of holders, under a lock, because two threads may be inside relayed forwards of one model. The last
one to leave gives the layer its class back.
"""

from __future__ import annotations

import threading

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..modules import class_of
from . import onednn
from .chosen import Linears
from .layers import SWITCHED, least_work

_lock = threading.Lock()
_holders: dict[nn.Module, set[object]] = {}


def select(linears: Linears, holder: object) -> None:
    """Let oneDNN compute the layers, until `holder` has deselected them, unless PyTorch's settings forbid it."""
    if not linears.modules or not _allowed():
        return
    linears.used = True
    least_work.set((*least_work.get(), (holder, linears.least_work)))
    with _lock:
        for module in linears.modules:
            kind = type(module)
            if kind in SWITCHED:
                _holders.setdefault(module, set()).add(holder)
                module.__class__ = SWITCHED[kind]
            elif module in _holders:
                _holders[module].add(holder)


def deselect(linears: Linears, holder: object) -> None:
    """Undo `select`, also one that an interrupt cut short. A class that others have given a layer meanwhile stays."""
    least_work.set(tuple(each for each in least_work.get() if each[0] is not holder))
    with _lock:
        for module in linears.modules:
            holders = _holders.get(module)
            if holders is None:
                continue
            holders.discard(holder)
            if not holders:
                module.__class__ = class_of(module)
                del _holders[module]


def _allowed() -> bool:
    """Whether PyTorch's settings leave the choice: the operator knows no autocast, no gradients and no modes."""
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and onednn.is_single_precision()
        and all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())
        and not _get_current_dispatch_mode_stack()
    )
