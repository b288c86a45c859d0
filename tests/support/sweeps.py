"""Parameters that only the sweep goes through: `make test-all`, not `make test`."""

from collections.abc import Iterable
from typing import Any

import pytest


def swept(values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, or tuples of several parameters' values, for the sweep alone."""
    return [pytest.param(*(each if isinstance(each, tuple) else [each]), marks=pytest.mark.sweep) for each in values]


def all_but_swept(values: Iterable[Any], kept: int = 1) -> list[Any]:
    """All values: the first few for every run of the tests, the rest for the sweep alone."""
    values = list(values)
    return [*values[:kept], *swept(values[kept:])]
