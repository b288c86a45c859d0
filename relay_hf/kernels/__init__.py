"""Relay attention on tensors: the segment, the plan of a forward, the reference and the paths that implement it."""

from .plan import Plan
from .segment import Segment

__all__ = ["Plan", "Segment"]
