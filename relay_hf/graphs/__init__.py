"""Decode steps as CUDA graphs: recorded once, captured once, then replayed in this call and in later ones."""

from .decode_graph import own_copy
from .lookahead import with_criterion
from .pool import GraphPool
from .runner import GraphRunner

__all__ = ["GraphPool", "GraphRunner", "own_copy", "with_criterion"]
