"""Relay attention on tensors: its arguments, the plan of a forward, the reference, and the backends that compute it."""

from .arguments import OwnColumns, ScoreOptions
from .plan import BackendState, GraphTables, Plan
from .segment import Segment

__all__ = ["BackendState", "GraphTables", "OwnColumns", "Plan", "ScoreOptions", "Segment"]
