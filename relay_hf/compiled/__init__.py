"""Decode steps that torch.compile has compiled for a CPU: once a model, for all numbers of rows and all calls."""

from .runner import CompiledRunner
from .steps import CompiledSteps

__all__ = ["CompiledRunner", "CompiledSteps"]
