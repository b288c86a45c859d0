"""The package that code comes from, told by its file: `functools.wraps` copies a function's `__module__`."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Collection
from functools import cache, lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .by_token import is_by_token

# Their modules are taken to act token by token, as Transformers' models use them; some are checked by name
# (`quantizers.py`, `hooks.py`).
PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl")
# But for these files. Lily chooses among its experts by what all tokens of a batch ask for.
_SEVERAL_TOKENS = (("peft", "tuners/lily/layer.py"),)
_HELPERS = ("relay_hf", "typing_extensions")
# Where models from the Hub bring code of their own: a repository is a folder of it.
_FROM_THE_HUB = "transformers_modules"


@cache
def is_in(path: str, package: str, file: str = "") -> bool:
    """Whether `path` is the path of a file of a package: of the one whose path ends with `file`, or of any."""
    at_end = not file or path.replace(os.sep, "/").endswith(f"/{file}")
    return at_end and os.path.realpath(path).startswith(_folders(package))


@cache
def is_known(path: str) -> bool:
    """Whether the code of a file is of one of the known packages, of Python itself, or of this library."""
    if any(is_in(path, package, file) for package, file in _SEVERAL_TOKENS):
        return False
    if any(is_in(path, package) for package in (*PACKAGES, *_HELPERS)):
        return True
    library = os.path.realpath(sysconfig.get_path("stdlib")) + os.sep
    of_python = os.path.realpath(path).startswith(library) and "site-packages" not in path
    return of_python or path.startswith("<frozen ")


def is_known_function(function: Any, files: Collection[str] = ()) -> bool:
    """Whether a function is of a known package, or of `files`; or is without Python code, and known by name."""
    if isinstance(function, FunctionType):
        return is_known(function.__code__.co_filename) or function.__code__.co_filename in files
    return is_by_token(function)


@cache
def _folders(package: str) -> tuple[str, ...]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    folders = spec.submodule_search_locations
    if folders is None:  # a package of one file
        return () if spec.origin is None else (os.path.realpath(spec.origin),)
    return tuple(os.path.realpath(folder) + os.sep for folder in folders)


def described(found: Any) -> str:
    """What was found, in words for a reason: the name of a function, or of its code, and where it is from."""
    code = found if isinstance(found, CodeType) else getattr(found, "__code__", None)
    if isinstance(code, CodeType):
        return _described(code)
    if isinstance(found, ModuleType):
        return found.__name__
    kind = found if hasattr(found, "__qualname__") else type(found)
    return f"{getattr(kind, '__module__', None) or type(found).__module__}.{kind.__qualname__}"


@lru_cache(256)
def _described(code: CodeType) -> str:
    name, path = code.co_qualname.replace("<locals>.", ""), code.co_filename
    for module_name, module in list(sys.modules.items()):
        if getattr(module, "__dict__", {}).get("__file__") == path:
            return f"{module_name}.{name}"
    return f"{name} in {os.path.basename(path)}"


def file_of(module_name: str) -> str | None:
    """The file of the Python module `module_name`, or None."""
    return getattr(sys.modules.get(module_name), "__file__", None)


@cache
def code_of(module_name: str) -> CodeType | None:
    """The code of a Python module's file, whatever stands in the module by now; None if there is no such file."""
    spec = getattr(sys.modules.get(module_name), "__spec__", None)
    get_code = getattr(getattr(spec, "loader", None), "get_code", None)
    return None if get_code is None else get_code(module_name)


def own_files(kind: type) -> frozenset[str]:
    """The files that a model's class, and the classes that it is derived from, are written in, beside the known ones.

    A model from the Hub may be written in several files of its repository: all of them count.
    """
    files = set()
    for base in kind.__mro__:
        path = file_of(base.__module__)
        if path is None:  # a class of a notebook, or of a session: each cell is a file
            path = next((f.__code__.co_filename for f in vars(base).values() if hasattr(f, "__code__")), None)
        if path is None or is_known(path):
            continue
        files.add(path)
        if base.__module__.startswith(_FROM_THE_HUB):
            package = base.__module__.rpartition(".")[0] + "."
            beside = [file_of(name) for name in list(sys.modules) if name.startswith(package)]
            files.update(each for each in beside if each is not None)
    return frozenset(files)
