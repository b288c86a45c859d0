"""Whether a model is compiled."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

# The attribute by which nn.Module runs a compiled call instead of hooks and forward, and the mark that torch.compile
# leaves on a function.
CALL_PATH = "_compiled_call_impl"
ORIGINAL = "_torchdynamo_orig_callable"
_WRAPPED = "_orig_mod"  # the name of a module within the one that torch.compile puts around it


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has compiled the model's forward, or all of a call of it."""
    return hasattr(model.forward, ORIGINAL) or hasattr(model.__dict__.get(CALL_PATH), ORIGINAL)


def is_compiled_inside(modules: Iterable[nn.Module]) -> bool:
    """Whether torch.compile has compiled any of the modules, in its place or around it."""
    return any(_WRAPPED in module._modules or is_compiled(module) for module in modules)
