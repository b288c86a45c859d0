"""A fact about Transformers that relay_hf depends on, and functions that find out how the installed one is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from .models import is_librarys

_ABSENT = "nothing of that name"
# Found if somebody has replaced code of Transformers by their own. Such a change is no release of Transformers.
OF_OTHERS = object()


@dataclass(frozen=True)
class Fact:
    """One fact that relay_hf depends on.

    Attributes:
        what: its name in an error.
        expected: the expected value, from the version `since` on.
        find: finds the present value.
        since: the first supported minor version of Transformers 5 for which it holds.
        ignored: values that may be found beside the expected ones.
    """

    what: str
    expected: Any
    find: Callable[[], Any]
    since: int = 17
    ignored: frozenset[str] = frozenset()

    def difference(self) -> str | None:
        """How the present value differs, in words, or None."""
        try:
            found = self.find()
        except Exception:  # the code has changed, in whatever way
            found = _ABSENT
        if found is OF_OTHERS:
            return None
        if isinstance(found, list):
            found = [name for name in found if name not in self.ignored]
        return None if found == self.expected else f"{self.what}: expected {self.expected}, found {found}"


def arguments(owner: Any, name: str) -> Callable[[], Any]:
    """A function that finds the names of the arguments of a function or method, without `self`."""

    def find() -> Any:
        function = getattr(owner, name)
        if not is_librarys(getattr(function, "__module__", "transformers.")):
            return OF_OTHERS
        return [each for each in inspect.signature(function).parameters if each != "self"]

    return find


def takes(owner: Any, name: str, *expected: str, since: int = 17, ignored: Sequence[str] = ()) -> Fact:
    """The fact that a function or method takes arguments of these names, in this order."""
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
