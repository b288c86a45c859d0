"""One thing that relay_hf takes for granted of Transformers, and ways to find how it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

_ABSENT = "nothing of that name"


@dataclass(frozen=True)
class Fact:
    """One thing that relay_hf takes for granted.

    Attributes:
        what: in words, as an error names it.
        expected: how it was, from the version `since` on.
        find: how it is.
        since: the first minor version of Transformers 5 that it holds of, of those that are supported.
        ignored: what may be found besides.
    """

    what: str
    expected: Any
    find: Callable[[], Any]
    since: int = 17
    ignored: frozenset[str] = frozenset()

    def difference(self) -> str | None:
        """How it is another now, in words, or None."""
        try:
            found = self.find()
        except (AttributeError, ImportError, TypeError, ValueError):
            found = _ABSENT
        if isinstance(found, list):
            found = [name for name in found if name not in self.ignored]
        return None if found == self.expected else f"{self.what}: expected {self.expected}, found {found}"


def arguments(owner: Any, name: str) -> Callable[[], list[str]]:
    """What finds the names of the arguments of a function or method, `self` left out."""

    def find() -> list[str]:
        return [each for each in inspect.signature(getattr(owner, name)).parameters if each != "self"]

    return find


def takes(owner: Any, name: str, *expected: str, since: int = 17, ignored: Sequence[str] = ()) -> Fact:
    """That a function or method takes arguments of these names, in this order."""
    where = getattr(owner, "__qualname__", owner.__name__)
    return Fact(f"the arguments of {where}.{name}", [*expected], arguments(owner, name), since, frozenset(ignored))


def mentions(owner: Any, name: str, words: Sequence[str]) -> list[str]:
    """Which of `words` the code of a function names, as an attribute or as text."""

    def names(code: CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from names(constant)
            elif isinstance(constant, str):
                yield constant

    found = {*names(inspect.unwrap(getattr(owner, name)).__code__)}
    return [word for word in words if word in found]
