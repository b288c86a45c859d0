"""Runs a function that torch.compile must not trace, because the compiler can't follow its code.

It is imported only while something is compiled, because it loads PyTorch's compiler, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, as Python runs it."""
    return function(*arguments)
