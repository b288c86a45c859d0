"""Relay attention on tensors: the operator's arguments, a forward's plan, the reference, and the two backends."""

from .arguments import OwnColumns, ScoreOptions
from .plan import BackendState, GraphTables, Plan
from .segment import Segment

__all__ = ["BackendState", "GraphTables", "OwnColumns", "Plan", "ScoreOptions", "Segment"]
