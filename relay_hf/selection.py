"""Which attention implementation a model's configs name: ours while a relayed forward runs, the user's otherwise.

Who holds the switch is known per config object, under a lock: two threads, or two models that share a config, may be
inside relayed forwards at once, and the last one out restores what the user had. While it is switched, a forward that
has no RelayCache finds our name too; it is handed on to the user's implementation (`attention.py`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from transformers import PreTrainedConfig

ATTENTION_NAME = "relay_attention"
# The field behind `config._attn_implementation`; written directly because the property's setter also overwrites
# what sub-configs had, and those are selected and restored one by one here.
ATTENTION_FIELD = "_attn_implementation_internal"


@dataclass
class _Selected:
    config: PreTrainedConfig
    users_choice: str | None
    holders: set[object] = field(default_factory=set)


_lock = threading.Lock()
_selected: dict[int, _Selected] = {}


def attention_configs(modules: Iterable[nn.Module]) -> list[PreTrainedConfig]:
    """The distinct config objects that modules read their attention implementation from."""
    found = {id(config): config for module in modules if (config := module.__dict__.get("config")) is not None}
    return [config for config in found.values() if hasattr(config, ATTENTION_FIELD)]


def select(configs: Iterable[PreTrainedConfig], holder: object) -> None:
    """Make `configs` name our implementation, until every holder has deselected them."""
    with _lock:
        for config in configs:
            entry = _selected.setdefault(id(config), _Selected(config, getattr(config, ATTENTION_FIELD)))
            entry.holders.add(holder)
            setattr(config, ATTENTION_FIELD, ATTENTION_NAME)


def deselect(configs: Iterable[PreTrainedConfig], holder: object) -> None:
    """Undo `select`, as far as it came before an interrupt; the last holder restores what the configs named before."""
    with _lock:
        for config in configs:
            entry = _selected.get(id(config))
            if entry is None:
                continue
            entry.holders.discard(holder)
            if not entry.holders:
                setattr(config, ATTENTION_FIELD, entry.users_choice)
                del _selected[id(config)]


def users_implementation(config: PreTrainedConfig) -> str | None:
    """The implementation that the user chose, whether or not ours is selected now."""
    with _lock:
        entry = _selected.get(id(config))
        found = getattr(config, ATTENTION_FIELD) if entry is None else entry.users_choice
    # A config that was copied in the middle of a relayed forward names ours for good.
    return "sdpa" if found == ATTENTION_NAME else found
