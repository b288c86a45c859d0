"""Prefilling a forest of shared runs: level by level, all runs of a level as one batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cache_utils import RelayCache, RowLayout, SharedLayer
from .call import open_call
from .passes import run

if TYPE_CHECKING:
    from .prefix import Run
    from .relay import Relay

Path = tuple[tuple["Run", list[SharedLayer]], ...]  # the runs before a run, from the root on, and what they left


def prefill_levels(
    relay: Relay, level: list[Run], inputs: Collection[str], chunk: int | None = None, before: Path = ()
) -> list[tuple[Run, list[SharedLayer]]]:
    """Prefill runs and all that follows them. Each token goes through the model once.

    Args:
        relay: the model's handle.
        level: runs that follow each other nowhere.
        inputs: names of the keyword inputs that the forwards of the call have.
        chunk: tokens of a run to put through the model at once, or None for all.
        before: the runs before all of them.

    Returns:
        Every run with what its layers keep of it, each after the run before it.
    """
    done = []
    paths: list[Path] = [before] * len(level)
    while level:
        layers = _prefill_level(relay, level, paths, inputs, chunk)
        done += list(zip(level, layers, strict=True))
        paths = [
            (*path, (each, own)) for each, path, own in zip(level, paths, layers, strict=True) for _ in each.children
        ]
        level = [child for each in level for child in each.children]
    return done


def _prefill_level(
    relay: Relay, level: list[Run], paths: list[Path], inputs: Collection[str], chunk: int | None
) -> list[list[SharedLayer]]:
    """Each run as a row of a batch, behind the runs on its path."""
    width, widest = max(each.end for each in level), max(len(each.ids) for each in level)
    device = relay.model.device
    own_start = torch.tensor([widest - len(each.ids) for each in level], device=device)
    ragged = bool(own_start.any())
    rows = RowLayout(
        offset=width - widest,
        shared_length=tuple(each.start for each in level),
        own_start=own_start if ragged else None,
        reserve=widest,
    )
    cache = RelayCache(relay.text_config)
    cache.share(None, rows)
    users: dict[Run, list[int]] = {}
    kept = {}
    for index, path in enumerate(paths):
        for each, layers in path:
            users.setdefault(each, []).append(index)
            kept[each] = layers
    for each, indices in users.items():  # a run is met before those that follow it
        cache.share_among(tuple(indices), kept[each], each.start)
    call = open_call()
    captured: dict[int, tuple[Tensor, Tensor]] = {}
    call.cache, call.capture = cache, captured
    ids, own_inputs = _inputs(level, width, inputs, device)
    run(relay, ids, own_inputs, cache, rows.offset, chunk)
    call.capture = None
    return [cache.freeze(captured, index, len(each.ids) if ragged else None) for index, each in enumerate(level)]


def _inputs(
    level: list[Run], width: int, inputs: Collection[str], device: torch.device
) -> tuple[Tensor, dict[str, Any]]:
    """Ids, mask and positions of a level. Before the runs' own tokens there are no ids: nothing reads them."""
    ids = torch.zeros(len(level), width, dtype=torch.int64)
    mask = torch.zeros(len(level), width, dtype=torch.int64)
    for row, each in enumerate(level):
        ids[row, width - len(each.ids) :] = each.ids
        mask[row, width - each.end :] = 1
    named: dict[str, Any] = {"use_cache": True, "attention_mask": None if bool(mask.all()) else mask.to(device)}
    if "logits_to_keep" in inputs:
        named["logits_to_keep"] = 1
    if "position_ids" in inputs:
        named["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    return ids.to(device), named
