"""Relay attention by Triton kernels. Importing this imports Triton."""

from .path import refusal, relay_attention

__all__ = ["refusal", "relay_attention"]
