"""Recent prompts, as token ids: a start that returns is worth keeping even when no batch shares it."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from .find import common_length


class RecentPrompts:
    """The last prompts seen.

    Args:
        count: how many are remembered (prompts); a prompt of 4,000 tokens is 32 KB.
    """

    def __init__(self, count: int) -> None:
        self._prompts: deque[Tensor] = deque(maxlen=count)

    def returning(self, ids: Tensor) -> int:
        """Length of the longest start of `ids` (`[n]`) that an earlier prompt had too (tokens)."""
        return max((common_length(ids, prompt) for prompt in self._prompts), default=0)

    def add(self, ids: Tensor) -> None:
        """Remember a prompt; the same one twice takes one place."""
        if not any(len(p) == len(ids) and common_length(p, ids) == len(ids) for p in self._prompts):
            self._prompts.append(ids.clone())

    def clear(self) -> None:
        """Forget all."""
        self._prompts.clear()
