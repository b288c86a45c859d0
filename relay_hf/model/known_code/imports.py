"""What the file of a Python module imports, told from its code: what stands in the module may have been replaced."""

from __future__ import annotations

import dis
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from .origins import code_of


class _Source(NamedTuple):
    """Where a name is imported from: a Python module, and the name that it has there (None: it is that module)."""

    module: str
    name: str | None


def is_imported(module_name: str, name: str) -> bool:
    """Whether the file of a Python module imports something under this name."""
    return name in _sources(module_name)


def is_as_imported(module_name: str, name: str, value: Any) -> bool:
    """Whether a value is what the file of a Python module has imported under this name."""
    source = _sources(module_name).get(name)
    if source is None:
        return False
    there = sys.modules.get(source.module)
    if source.name is None:
        return there is value
    as_module = sys.modules.get(f"{source.module}.{source.name}")
    return value is getattr(there, source.name, None) or (as_module is not None and value is as_module)


@cache
def imported_packages(module_name: str) -> frozenset[str]:
    """The packages that the file of a Python module imports from."""
    return frozenset(source.module.partition(".")[0] for source in _sources(module_name).values())


@cache
def _sources(module_name: str) -> Mapping[str, _Source]:
    code = code_of(module_name)
    if code is None:
        return {}
    package = sys.modules[module_name].__spec__.parent  # type: ignore[union-attr]
    found: dict[str, _Source] = {}
    constants: list[Any] = []  # the last two: the level of an import, and the names that it takes
    module = name = names = None
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            constants = [*constants, each.argval][-2:]
        elif each.opname == "IMPORT_NAME":
            level, names = constants
            module = importlib.util.resolve_name("." * level + each.argval, package) if level else each.argval
            name = None
        elif each.opname == "IMPORT_FROM":
            name = each.argval
        elif each.opname in ("STORE_NAME", "STORE_GLOBAL") and module is not None:
            if names is None:  # `import a.b as c` takes b from a, and `import a.b` stores a
                found[each.argval] = _Source(module if name else module.partition(".")[0], None)
                module = None
            elif name is not None:
                found[each.argval] = _Source(module, name)
        elif each.opname == "POP_TOP" and names is not None:
            module = None
    return found
