"""The results of `python -m benchmarks.compile --write`, kept under a digest of all that decides them.

To compile every kernel for every chip takes minutes. The digest covers the files with a kernel, the table of tiles, the
code that compiles and reads, and Triton's version, whose wheel brings the assembler. Equal digests mean equal results.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import triton

import relay_hf

PATH = Path(__file__).parent / "results" / "compiled.json"
_KERNELS = Path(relay_hf.__file__).parent / "kernels" / "triton"


def digest() -> str:
    """Of the sources as they are, comments and docstrings left out, and of the Triton that is installed."""
    found = hashlib.sha256(triton.__version__.encode())
    kernels = [path for path in sorted(_KERNELS.glob("*.py")) if "triton.jit" in path.read_text(encoding="utf-8")]
    for path in [*kernels, _KERNELS / "tuning.py", Path(__file__).with_name("compile.py")]:
        found.update(f"{path.name} {_code(path)}".encode())
    found.update((_KERNELS / "tiles.json").read_bytes())
    return found.hexdigest()


def kept() -> list[dict[str, Any]] | None:
    """The results of just these sources, or None."""
    record = json.loads(PATH.read_text(encoding="utf-8"))
    return record["kernels"] if record["digest"] == digest() else None


def keep(kernels: list[dict[str, Any]]) -> None:
    """Write the results of all kernels and chips, a line each."""
    lines = ",\n".join(json.dumps(each) for each in kernels)
    PATH.write_text(f'{{"digest": "{digest()}", "triton": "{triton.__version__}", "kernels": [\n{lines}\n]}}\n')


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
