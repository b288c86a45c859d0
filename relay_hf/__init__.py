"""Shared prefixes computed, stored and read once per batch in Hugging Face generate() (RelayAttention)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops
    from .cache_utils import RelayCache
    from .config import RelayConfig
    from .errors import PrefixFileError, RelayError
    from .patching import patch_model, patched, unpatch_model
    from .report import RelayReport

__version__ = "0.1.0"
__all__ = [
    "PrefixFileError",
    "RelayCache",
    "RelayConfig",
    "RelayError",
    "RelayReport",
    "ops",
    "patch_model",
    "patched",
    "unpatch_model",
]

_HOME = {
    "PrefixFileError": "errors",
    "RelayCache": "cache_utils",
    "RelayConfig": "config",
    "RelayError": "errors",
    "RelayReport": "report",
    "patch_model": "patching",
    "patched": "patching",
    "unpatch_model": "patching",
}


def __getattr__(name: str) -> Any:
    """Load an export at its first use: Transformers, and Triton with it, take seconds that `ops` does without."""
    if name == "ops":
        return importlib.import_module(".ops", __name__)
    if name in _HOME:
        try:
            return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        except (AttributeError, ImportError) as error:
            raise _of_transformers(error) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _of_transformers(error: Exception) -> Exception:
    """A RelayError where an import from within Transformers fails, or the error itself."""
    from .errors import RelayError

    try:
        from .upstream.version import refusal_of_import
    except ImportError:
        return error
    refusal = refusal_of_import(error)
    return error if refusal is None else RelayError(refusal)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
