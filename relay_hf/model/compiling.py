"""Whether a model is compiled."""

from __future__ import annotations

from torch import nn

# The attribute by which nn.Module runs a compiled call instead of hooks and forward, and the mark that torch.compile
# leaves on a function.
CALL_PATH = "_compiled_call_impl"
ORIGINAL = "_torchdynamo_orig_callable"


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has compiled the model's forward, or all of a call of it."""
    return hasattr(model.forward, ORIGINAL) or hasattr(model.__dict__.get(CALL_PATH), ORIGINAL)
