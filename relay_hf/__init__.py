"""Shared prefixes computed, stored and read once per batch in Hugging Face generate() (RelayAttention)."""

from . import ops
from .cache_utils import RelayCache
from .config import RelayConfig
from .frame import RelayError
from .patching import patch_model, patched, unpatch_model
from .report import RelayReport

__version__ = "0.1.0"
__all__ = [
    "RelayCache",
    "RelayConfig",
    "RelayError",
    "RelayReport",
    "ops",
    "patch_model",
    "patched",
    "unpatch_model",
]
