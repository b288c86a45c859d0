"""The backend "torch": relay attention by PyTorch's own operations, on any device."""

from .backend import relay_attention

__all__ = ["relay_attention"]
