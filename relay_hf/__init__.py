"""Shared prefixes computed, stored and read once per batch in Hugging Face generate() (RelayAttention)."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops
    from .cache_utils import RelayCache
    from .config import RelayConfig
    from .errors import PrefixFileError, RelayError
    from .patching import patch_model, patched, unpatch_model
    from .report import RelayReport

__version__ = "0.2.0"
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


# Classes that have moved since earlier versions of 0.1.0: old module, new module, and old and new names. Pickles of
# these versions have the old names.
_MOVED: dict[str, tuple[str, dict[str, str]]] = {
    "relay_hf.cache_utils.hybrid": ("cache_utils.hybrid_layer", {"HybridLayer": "HybridLayer"}),
    "relay_hf.cache_utils.rows": ("cache_utils.row_layout", {"RowLayout": "RowLayout"}),
    "relay_hf.cache_utils.shared": (
        "cache_utils.prefix_kv",
        {"SharedKV": "LayerKV", "SharedLayer": "LayerState", "SharedRun": "PrefixKV"},
    ),
    "relay_hf.cache_utils.state": (
        "cache_utils.state_layer",
        {"RecurrentState": "RecurrentState", "StateLayer": "StateLayer"},
    ),
    "relay_hf.eligibility": ("errors", {"TokenIdError": "TokenIdError"}),
    "relay_hf.graphs.kept": ("graphs.pool", {"Graphs": "GraphPool"}),
    "relay_hf.keeping": ("prefix.store", {"Keeper": "PrefixStore"}),
    "relay_hf.prefix.files": ("errors", {"PrefixFileError": "PrefixFileError"}),
    "relay_hf.prefix.kept": ("prefix.kept_prefix", {"KeptPrefix": "KeptPrefix", "Node": "RadixNode"}),
}


class _Moved:
    """Imports a module of `_MOVED` by its old name, when somebody asks for it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, _Moved) if name in _MOVED else None  # type: ignore[arg-type] # a class with its methods

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType | None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        home, names = _MOVED[module.__name__]
        found = importlib.import_module(f".{home}", __name__)
        vars(module).update({old: getattr(found, new) for old, new in names.items()})


sys.meta_path.append(_Moved)  # last, so that it is asked only for modules that no other finder has


def __getattr__(name: str) -> Any:
    """Import an export at its first use, because Transformers and Triton take seconds, and `ops` needs neither."""
    if name == "ops":
        return importlib.import_module(".ops", __name__)
    if name in _HOME:
        try:
            return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        except (AttributeError, ImportError) as error:
            raise _of_transformers(error) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _of_transformers(error: Exception) -> Exception:
    """A RelayError if an import from within Transformers has failed; else the error itself."""
    from .errors import RelayError

    try:
        from .model.upstream.version import refusal_of_import
    except ImportError:
        return error
    refusal = refusal_of_import(error)
    return error if refusal is None else RelayError(refusal)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
