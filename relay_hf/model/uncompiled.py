"""Runs what torch.compile is not to look into: it reads what the compiler can't follow.

Imported only while something is compiled: it loads PyTorch's compiler, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, as Python runs it."""
    return function(*arguments)
