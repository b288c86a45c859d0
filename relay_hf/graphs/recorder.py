"""Records the operations of a forward. If two steps run the same operations, a graph of one can replace the other."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Within it, every operation is noted by name, shapes, strides, dtypes and numbers, but not by addresses.

    A graph repeats the numbers that it was captured with. If the host counts a number from step to step, such as a
    position or a length, two steps differ in it, and a graph of the one would be wrong in the other.

    Kernels that are launched without PyTorch's dispatcher are not seen. The relay's own kernels are safe, because they
    read all that may change from device memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Note and run."""
        kwargs = kwargs or {}
        named = tuple((name, _described(value)) for name, value in kwargs.items())
        self.noted.append((operation, _described(args), named))
        return operation(*args, **kwargs)

    def differs(self, other: Operations) -> str | None:
        """The first operation in which `other` did something else, in words; None where both did the same."""
        for mine, theirs in zip(self.noted, other.noted, strict=False):
            if mine != theirs:
                return f"{mine[0]}: {mine[1:]} and then {theirs[1:]}" if mine[0] == theirs[0] else f"{mine[0]}"
        if len(self.noted) != len(other.noted):
            return f"{len(self.noted)} operations and then {len(other.noted)}"
        return None


def _described(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    if isinstance(argument, list | tuple):
        return tuple(_described(part) for part in argument)
    return repr(argument)
