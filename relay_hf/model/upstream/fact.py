"""One thing that relay_hf takes for granted of Transformers, and ways to find how it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from .models import is_librarys

_ABSENT = "nothing of that name"
# Found where somebody has put code of their own in the place of Transformers': that is no release of Transformers.
OF_OTHERS = object()


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
        except Exception:  # whatever stands there now, it is not what was
            found = _ABSENT
        if found is OF_OTHERS:
            return None
        if isinstance(found, list):
            found = [name for name in found if name not in self.ignored]
        return None if found == self.expected else f"{self.what}: expected {self.expected}, found {found}"


def arguments(owner: Any, name: str) -> Callable[[], Any]:
    """What finds the names of the arguments of a function or method, `self` left out."""

    def find() -> Any:
        function = getattr(owner, name)
        if not is_librarys(getattr(function, "__module__", "transformers.")):
            return OF_OTHERS
        return [each for each in inspect.signature(function).parameters if each != "self"]

    return find


def takes(owner: Any, name: str, *expected: str, since: int = 17, ignored: Sequence[str] = ()) -> Fact:
    """That a function or method takes arguments of these names, in this order."""
    where = getattr(owner, "__qualname__", owner.__name__)
    return Fact(f"the arguments of {where}.{name}", [*expected], arguments(owner, name), since, frozenset(ignored))


def mentions(owner: Any, name: str, words: Sequence[str]) -> Any:
    """Which of `words` the code of a function names, as an attribute or as text."""

    def names(code: CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from names(constant)
            elif isinstance(constant, str):
                yield constant

    function = inspect.unwrap(getattr(owner, name))
    if not is_librarys(function.__module__):
        return OF_OTHERS
    found = {*names(function.__code__)}
    return [word for word in words if word in found]
