"""Relay attention by Triton kernels. Importing this imports Triton."""

from .backend import refusal, relay_attention
from .graph_tables import DecodeTables

__all__ = ["DecodeTables", "refusal", "relay_attention"]
