"""What must hold after a fault: nothing half-made, nothing held, and a next call that is right."""

from __future__ import annotations

import gc
from typing import Any

import torch
from transformers import DynamicCache

from relay_hf.attention.listener import listener
from relay_hf.cache_utils.active import active_forward
from relay_hf.model.attention_choice import _holders
from tests.support.generating import CACHE
from tests.support.kept_bytes import held_bytes
from tests.support.model_snapshot import members


def assert_whole(model: Any) -> None:
    """Every kept prefix is what the model computes of its tokens, and the store's books are right."""
    store = model.relay._hooks.store.tree
    nodes = set(store)
    reached = {node for root in store._roots.values() for node in store.under(root.context)}
    assert reached == nodes
    assert store.nbytes == sum(node.nbytes for node in nodes) <= store.budget
    assert held_bytes(nodes) == store.nbytes
    for node in nodes:
        assert node.siblings <= nodes
        assert len(node.tokens) == len(node.embedded) == node.run.length == len(node) - node.run.start
        assert_computed(model, node)


def assert_computed(model: Any, node: Any) -> None:
    """A kept prefix has the KV of a fresh computation."""
    fresh = DynamicCache(config=model.config)
    with torch.no_grad():
        model(node.ids[None], **{CACHE: fresh})
    for layer, kept in zip(fresh.layers, node.run.layers, strict=True):
        if kept.kv is not None:
            for whole, part in zip((layer.keys, layer.values), kept.kv.stored, strict=True):
                torch.testing.assert_close(part, whole[0, :, node.run.start :], rtol=0, atol=1e-5)


class Alive:
    """What there is of some types; what other tests have left is not looked at."""

    def __init__(self, *types: type) -> None:
        self.types = types
        self._left = self._now()

    def since(self) -> list[Any]:
        """Those that came since, and are still there."""
        return [each for each in self._now() if not any(each is old for old in self._left)]

    def _now(self) -> list[Any]:
        return [each for each in gc.get_objects() if type(each) in self.types]


def assert_let_go(model: Any, before: dict, caches: Alive) -> None:
    """No call is open, the model is as it was between calls, and no cache is held; all without the collector."""
    assert listener.get() is None
    assert active_forward.get() is None
    assert not _holders
    assert members(model) == before
    assert not caches.since()
