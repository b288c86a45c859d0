"""Relay attention on tensors: the segment, the plan of a forward, the reference and the paths that implement it."""

from relay_hf.kernels.plan import Plan
from relay_hf.kernels.segment import Segment

__all__ = ["Plan", "Segment"]
