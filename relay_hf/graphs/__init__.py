"""Decode steps as CUDA graphs: recorded once, captured once, then replayed, in this call and in those to come."""

from .ahead import with_criterion
from .kept import Graphs
from .step import own_copy
from .stepper import Stepper

__all__ = ["Graphs", "Stepper", "own_copy", "with_criterion"]
