"""Relay attention by Triton kernels. Importing this imports Triton."""

from .path import refusal, relay_attention
from .tables import DecodeTables

__all__ = ["DecodeTables", "refusal", "relay_attention"]
