"""The check of the facts about Transformers that relay_hf depends on, made when a model is patched.

Transformers has a release every two weeks. If a fact no longer holds, the check refuses the release and names the fact,
because the relay would then be wrong, or would silently do nothing.
"""

from __future__ import annotations

import inspect
import re
from functools import lru_cache

from transformers import PreTrainedModel

from ...errors import RelayError
from .facts import facts
from .models import is_librarys
from .names import CACHE, CACHE_NAMES
from .version import INSTALLED, MINOR, SUPPORTED, is_supported, refusal_of

_CACHE = re.compile(r"\bCache\b")
_held = False  # True once all facts were found to hold; a change is looked for again in each call


def changed() -> str | None:
    """The first fact that does not hold for the installed Transformers, in words, or None."""
    global _held
    if not is_supported():
        return f"its version: expected {SUPPORTED}, found {INSTALLED}"
    difference = None if _held else next(filter(None, (fact.difference() for fact in facts())), None)
    _held = difference is None
    return difference


def changed_in(kind: type[PreTrainedModel]) -> str | None:
    """The same for a class's name of its cache; None too if it takes no cache, or is not Transformers' own."""
    forward = kind.forward
    if not is_librarys(kind.__module__) or not is_librarys(getattr(forward, "__module__", None)):
        return None  # and nothing is remembered, which would keep a user's class alive
    return _changed_in(kind)  # type: ignore[arg-type] # a class can be hashed


@lru_cache(maxsize=256)
def _changed_in(kind: type[PreTrainedModel]) -> str | None:
    parameters = inspect.signature(kind.forward).parameters
    known = CACHE_NAMES if MINOR < 24 else (CACHE,)
    if any(name in parameters for name in known):
        return None
    # A class that takes a cache has an annotation for it: `Cache | None`.
    others = [name for name, each in parameters.items() if _CACHE.search(str(each.annotation)) or name in CACHE_NAMES]
    what = f"the cache among the arguments of {kind.__name__}.forward"
    return f"{what}: expected {CACHE!r}, found {others[0]!r}" if others else None


def check(kind: type[PreTrainedModel]) -> None:
    """Raise a RelayError that names the fact, if Transformers or a class of its models is not as relay_hf knows it."""
    difference = changed() or changed_in(kind)
    if difference is not None:
        raise RelayError(refusal_of(difference))
