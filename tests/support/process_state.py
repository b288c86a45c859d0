"""What a process has beside its models: every global of torch and Transformers, their classes, loggers, warnings."""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Iterator
from operator import is_
from typing import Any

# What patching changes for good: the first patch of a process registers two functions with Transformers, by one name,
# and torch numbers the hooks of all models in one row.
REGISTERED = {
    "transformers.modeling_utils.AttentionInterface._global_mapping: 'relay_attention' came",
    "transformers.masking_utils.AttentionMaskInterface._global_mapping: 'relay_attention' came",
}
COUNTED = "torch.utils.hooks.RemovableHandle: 'next_id' is another"

_LIBRARIES = ("torch", "transformers")
_CONTAINERS = (dict, list, set)
# What holds globals, by identity, with its path: found once a module, for there are some 10,000 of them.
_holders: dict[int, tuple[str, Any]] = {}
_looked_into: set[str] = set()


class ProcessState:
    """All of it at one moment: the globals, and the items or attributes of those that are containers, classes, objects.

    Values are told apart by identity.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is deprecated says so when it is looked at
            for path, module in list(sys.modules.items()):
                if path not in _looked_into and _of_library(path) and isinstance(module, types.ModuleType):
                    _looked_into.add(path)
                    _hold_module(path, vars(module))
        self._held = [(path, holder, _copy(holder)) for path, holder in _holders.values()]
        self._logging = _logging()

    def changes(self) -> Iterator[str]:
        """What has been added, taken away or replaced since; modules that were imported since are no change."""
        now = _logging()
        for path, holder, before in [*self._held, *((name, now[name], held) for name, held in self._logging.items())]:
            if len(holder) != len(before) or not all(map(is_, _values(holder), _values(before))):
                yield from (f"{path}: {change}" for change in _changes(before, _copy(holder)))


def _of_library(path: str) -> bool:
    return path.partition(".")[0] in _LIBRARIES


def _hold_module(path: str, namespace: dict[str, Any]) -> None:
    _holders[id(namespace)] = path, namespace
    for name, value in list(namespace.items()):
        kind = value if isinstance(value, type) else type(value)
        if isinstance(value, _CONTAINERS):
            _holders.setdefault(id(value), (f"{path}.{name}", value))
        elif (
            id(value) not in _holders and kind.__module__.partition(".")[0] in _LIBRARIES and hasattr(value, "__dict__")
        ):
            inner = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else f"{path}.{name}"
            _holders[id(value)] = inner, vars(value)
            for attribute, content in list(vars(value).items()):
                if isinstance(content, _CONTAINERS):
                    _holders.setdefault(id(content), (f"{inner}.{attribute}", content))


# Through the methods of dict: a lazy mapping, asked in its own way, loads all of Transformers.


def _copy(holder: Any) -> Any:
    if isinstance(holder, dict) and type(holder) is not dict:
        return dict(zip(dict.keys(holder), dict.values(holder), strict=True))
    return holder.copy()


def _values(holder: Any) -> Any:
    if isinstance(holder, dict):
        return dict.values(holder)
    return holder.values() if isinstance(holder, types.MappingProxyType) else holder


def _changes(before: Any, now: Any) -> Iterator[str]:
    ordered = not isinstance(before, set)
    if isinstance(before, list):
        before, now = ({f"{item!r:.100}": item for item in items} for items in (before, now))
    elif isinstance(before, set):
        before, now = dict.fromkeys(before), dict.fromkeys(now)
    lazy = before.get("__all__", ())  # what a module announces, it may come to hold when it is first asked for
    for name in {**before, **now}:
        if name not in now:
            yield f"{name!r} left"
        elif name not in before:
            if name not in lazy and not isinstance(now[name], types.ModuleType):
                yield f"{name!r} came"
        elif now[name] is not before[name]:
            yield f"{name!r} is another"
    if ordered and [name for name in before if name in now] != [name for name in now if name in before]:
        yield "is in another order"


def _logging() -> dict[str, list[Any]]:
    """Filters, handlers and settings of all loggers, and the filters of warnings."""
    found: dict[str, list[Any]] = {"warnings.filters": list(warnings.filters)}
    for name, logger in [("root", logging.root), *logging.root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger):
            found[f"handlers of logger {name}"] = list(logger.handlers)
            found[f"filters of logger {name}"] = list(logger.filters)
            found[f"settings of logger {name}"] = [logger.level, logger.propagate, logger.disabled]
    return found
