"""Whether a model is compiled, as a whole or in parts, and how parts are left uncompiled for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

# The attribute by which nn.Module runs a compiled call instead of hooks and forward, and the mark that torch.compile
# leaves on a function.
CALL_PATH = "_compiled_call_impl"
ORIGINAL = "_torchdynamo_orig_callable"
_WRAPPED = "_orig_mod"  # the name of a module within the one that torch.compile puts around it

_lock = threading.Lock()
_set_aside: dict[nn.Module, tuple[Any, list[object]]] = {}  # a part's compiled call, and who set it aside


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has compiled the model's forward, or all of a call of it."""
    return hasattr(model.forward, ORIGINAL) or hasattr(model.__dict__.get(CALL_PATH), ORIGINAL)


def is_compiled_inside(modules: Iterable[nn.Module]) -> bool:
    """Whether torch.compile has compiled any of the modules, in its place or around it."""
    return any(_WRAPPED in module._modules or is_compiled(module) or module in _set_aside for module in modules)


def compiled_parts(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules whose calls `module.compile()` has compiled."""
    return [m for m in modules if hasattr(m.__dict__.get(CALL_PATH), ORIGINAL) or m in _set_aside]


@contextmanager
def uncompiled_parts(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it the modules run as they are, although `module.compile()` has compiled them.

    `torch.compiler.disable` around them would not do: a compiled call inside of it switches the compiler on again. The
    last thread to leave puts the compiled calls back, unless the user has replaced them meanwhile.
    """
    holder = object()
    try:
        with _lock:
            for module in modules:
                if module not in _set_aside:
                    _set_aside[module] = module.__dict__[CALL_PATH], []
                    module.__dict__[CALL_PATH] = None
                _set_aside[module][1].append(holder)
        yield
    finally:
        with _lock:
            for module in modules:
                call, holders = _set_aside.get(module, (None, []))
                if holder in holders:
                    holders.remove(holder)
                if call is not None and not holders:
                    del _set_aside[module]
                    if module.__dict__.get(CALL_PATH) is None:
                        module.__dict__[CALL_PATH] = call
