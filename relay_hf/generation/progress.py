"""The progress bar of `warm()`, for terminals and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def progress_bar(what: str, total: int, done: int, shown: bool | None) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the number of tokens that are done by now, of `total`.

    `shown`: None shows the bar only on a terminal and in a notebook. Transformers' `disable_progress_bar()` hides it.
    """
    hidden = not (_interactive() if shown is None else shown)
    with logging.tqdm(total=total, initial=done, desc=what, unit=" tokens", disable=hidden) as bar:

        def reached(tokens: int) -> None:
            nonlocal done
            bar.update(tokens - done)
            done = tokens

        yield reached


def _interactive() -> bool:
    try:
        return sys.stderr.isatty() or "ipykernel" in sys.modules
    except (AttributeError, ValueError):  # a process without standard error, or one that closed it
        return False
