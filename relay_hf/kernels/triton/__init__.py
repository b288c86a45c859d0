"""The backend "triton": relay attention by Triton kernels on NVIDIA GPUs. Importing this imports Triton."""

from .backend import refusal, relay_attention
from .graph_tables import DecodeTables

__all__ = ["DecodeTables", "refusal", "relay_attention"]
