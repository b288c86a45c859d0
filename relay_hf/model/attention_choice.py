"""Which attention implementation a model's configs name: ours while a relayed forward runs, the user's otherwise.

Each config object has a list of holders, under a lock: two threads, or two models that share a config, may be inside
relayed forwards at once, and the last one to leave restores the user's choice. A forward without a RelayCache finds our
name too meanwhile; it is handed on to the user's implementation (`attention/interface.py`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..errors import RelayError
from .upstream.attention import ATTENTION_FIELD, names_attention

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from transformers import PreTrainedConfig

ATTENTION_NAME = "relay_attention"


class _Selected(str):
    """Our name, instead of the user's choice. A copy or a pickle that is made meanwhile names the user's choice."""

    users_choice: str | None

    def __deepcopy__(self, memo: dict[int, Any]) -> str | None:
        return self.users_choice

    def __reduce__(self) -> tuple[Any, ...]:
        choice = self.users_choice
        return (type(choice), () if choice is None else (choice,))


def _in_place_of(users_choice: str | None) -> _Selected:
    name = _Selected(ATTENTION_NAME)
    name.users_choice = users_choice
    return name


_lock = threading.Lock()
_holders: dict[int, dict[object, str | None]] = {}  # by config: its holders, and the user's choice that each found


def attention_configs(modules: Iterable[nn.Module]) -> list[PreTrainedConfig]:
    """The distinct config objects that modules read their attention implementation from."""
    found = {id(config): config for module in modules if (config := module.__dict__.get("config")) is not None}
    return [config for config in found.values() if names_attention(config)]


def select(configs: Iterable[PreTrainedConfig], holder: object) -> None:
    """Make `configs` name our implementation, until every holder has deselected them."""
    with _lock:
        for config in configs:
            choice = users_implementation(config)
            _holders.setdefault(id(config), {})[holder] = choice
            if not isinstance(getattr(config, ATTENTION_FIELD), _Selected):
                setattr(config, ATTENTION_FIELD, _in_place_of(choice))


def deselect(configs: Iterable[PreTrainedConfig], holder: object) -> None:
    """Undo `select`, also one that an interrupt cut short; the last holder restores the user's choice.

    If the user has replaced our name since then, that choice stays.
    """
    with _lock:
        for config in configs:
            holders = _holders.get(id(config))
            if holders is None:
                continue
            holders.pop(holder, None)
            if not holders:
                setattr(config, ATTENTION_FIELD, users_implementation(config))
                del _holders[id(config)]


def users_implementation(config: PreTrainedConfig) -> str | None:
    """The implementation that the user chose, whether or not ours is selected now.

    Raises:
        RelayError: the user chose our own implementation, which needs another one to hand on to.
    """
    found = getattr(config, ATTENTION_FIELD)
    if isinstance(found, _Selected):
        return found.users_choice
    if found == ATTENTION_NAME:
        raise RelayError(
            f"attention implementation {ATTENTION_NAME!r} is relay_hf's own, for the time of a relayed forward; choose "
            "one of Transformers', such as model.set_attn_implementation('sdpa')."
        )
    return found


def chosen_since(configs: Iterable[PreTrainedConfig], holder: object) -> bool:
    """Whether the user has chosen another implementation since `holder` selected ours."""
    with _lock:
        found = [(_holders.get(id(config), {}), users_implementation(config)) for config in configs]
    return any(holder in holders and holders[holder] != choice for holders, choice in found)
