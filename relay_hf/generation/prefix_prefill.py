"""Prefilling a forest of shared prefixes: level by level, the nodes of a level as one batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cache_utils import PrefixKV, RelayCache, RowLayout
from ..model.fingerprint import ModelFingerprint, embedding_samples
from ..prefix import KeptPrefix, PrefixEntry, PrefixNode
from .call import GenerateCall
from .forward_rows import forward_rows

# A kept node in more pieces is joined for the call: it costs a copy, where each piece costs every layer of every decode
# step another part of attention, 0.06 ms with tiny operands. The states of recurrent layers keep a conversation in as
# many pieces as it has turns.
_MOST_PIECES = 4

PrefilledTree = list[tuple[PrefixNode, list[PrefixKV]]]  # nodes, and what the model keeps of them, in pieces
_Path = tuple[tuple[PrefixNode, list[PrefixKV]], ...]  # a node with those before it, from the first one on


def prefill_tree(
    call: GenerateCall,
    runs: list[PrefixNode],
    held: Callable[[PrefixNode], list[PrefixKV]],
    inputs: Collection[str],
    chunk: int | None = None,
) -> PrefilledTree:
    """A forest of runs with their KV: from the store, or prefilled. Each token goes through the model once.

    Args:
        call: the call that runs.
        runs: a forest.
        held: what there is of a run that is kept.
        inputs: names of the keyword inputs that the forwards of the call have.
        chunk: tokens of a run to put through the model at once, or None for all.

    Returns:
        Every run with what there is of it now, each after the run before it.
    """
    done: PrefilledTree = []
    ready: list[tuple[PrefixNode, _Path]] = [(each, ()) for each in runs]
    while ready:
        level, missing = ready, []
        while level:  # what is kept takes no forward, so what follows it is of the same level
            each, path = level.pop()
            if each.kept:
                pieces = held(each)
                done.append((each, [PrefixKV.joined(pieces)] if len(pieces) > _MOST_PIECES else pieces))
                level += [(child, (*path, done[-1])) for child in each.children]
            else:
                missing.append((each, path))
        ready = []
        # Asked only where anything is missing: 0.7 ms for 33 layers.
        gapless = bool(missing) and bool(RelayCache(call.facts.view.text_config).state_layers)
        for batch in _batches(missing, gapless):
            for (each, path), own in zip(batch, _prefill(call, batch, inputs, chunk), strict=True):
                done.append((each, [own]))
                ready += [(child, (*path, done[-1])) for child in each.children]
    return done


def prefill_and_store(
    call: GenerateCall,
    runs: list[PrefixNode],
    held: Callable[[PrefixNode], list[PrefixKV]],
    inputs: Collection[str],
    chunk: int | None = None,
    before: ModelFingerprint | None = None,
    pin: bool = False,
) -> tuple[PrefilledTree, list[KeptPrefix | None]]:
    """`prefill_tree`, and what was prefilled kept for later calls, if the model stayed the same meanwhile.

    `before`: the model when it was looked up what is kept; None: nothing was. `pin`: what is kept is to stay.

    Returns:
        What `prefill_tree` does, and the prefixes that are kept now, in the order of the nodes that were not.
    """
    missing = [(each, ids) for each, ids in _with_ids(runs) if not each.kept]
    if not missing:
        return prefill_tree(call, runs, held, inputs, chunk), []
    view = call.facts.view
    before = before or call.facts.store.fingerprint(view.modules)
    lengths = [len(each.ids) for each, _ in missing]
    samples = embedding_samples(view.embedding, torch.cat([each.ids for each, _ in missing]))  # one look for all
    rows = [each.clone() for each in samples.split(lengths)]
    key = view.store_key
    filled = prefill_tree(call, runs, held, inputs, chunk)
    if view.store_key != key:
        # Another thread has changed how PyTorch computes: some of the KV was computed in one way, some in another.
        return filled, [None for _ in missing]
    pieces = dict(filled)
    new = [PrefixEntry(ids, pieces[each][0], seen, pinned=pin) for (each, ids), seen in zip(missing, rows, strict=True)]
    return filled, call.facts.source.keep(before, view.modules, new, key)


def _with_ids(runs: list[PrefixNode]) -> Iterator[tuple[PrefixNode, Tensor]]:
    """Every run of a forest after the run before it, with all tokens from position 0 to its end."""
    stack = [(run, run.ids) for run in reversed(runs)]
    while stack:
        run, ids = stack.pop()
        yield run, ids
        stack += [(child, torch.cat([ids, child.ids])) for child in reversed(run.children)]


def _batches(level: list[tuple[PrefixNode, _Path]], gapless: bool) -> Iterator[list[tuple[PrefixNode, _Path]]]:
    """The runs of a level, in batches in which none is more than twice as long as another.

    A batch is padded to its longest run: a document of 4,000 tokens beside 15 of 50 would take 14 times what they need.
    `gapless`: recurrent layers see padding as tokens, so only runs of the same positions are a batch.
    """
    batch: list[tuple[PrefixNode, _Path]] = []
    for each in sorted(level, key=lambda item: (-len(item[0].ids), item[0].start)):
        if batch:
            run, longest = each[0], batch[0][0]
            alike = len(run.ids) == len(longest.ids) and run.start == longest.start
            if not (alike if gapless else 2 * len(run.ids) >= len(longest.ids)):
                yield batch
                batch = []
        batch.append(each)
    if batch:
        yield batch


def _prefill(
    call: GenerateCall, batch: Sequence[tuple[PrefixNode, _Path]], inputs: Collection[str], chunk: int | None
) -> list[PrefixKV]:
    """Each run as a row of a batch, behind the runs on its path."""
    runs = [each for each, _ in batch]
    width, widest = max(each.end for each in runs), max(len(each.ids) for each in runs)
    view = call.facts.view
    device = view.device
    own_start = [widest - len(each.ids) for each in runs]
    rows = RowLayout(
        offset=width - widest,
        shared_length=tuple(each.start for each in runs),
        own_start=torch.tensor(own_start, device=device) if any(own_start) else None,
        reserve=widest,
    )
    users: dict[PrefixNode, list[int]] = {}
    pieces = {}
    for index, (_, path) in enumerate(batch):
        for each, own in path:
            users.setdefault(each, []).append(index)
            pieces[each] = own
    # A run is met before those that follow it.
    shared = [(tuple(indices), piece) for each, indices in users.items() for piece in pieces[each]]
    cache = RelayCache(view.text_config)
    cache.share(shared, rows, len(batch))
    captured: dict[int, tuple[Tensor, Tensor]] = {}
    call.cache, call.capture = cache, captured
    ids, own_inputs = _inputs(runs, width, inputs, device)
    forward_rows(call.facts, ids, own_inputs, cache, rows.offset, chunk)
    call.capture = None
    alone = len(batch) == 1  # copied otherwise: views would hold the whole batch
    return [
        cache.freeze(captured, each.start, len(each.ids), None if alone else index) for index, each in enumerate(runs)
    ]


def _inputs(
    runs: list[PrefixNode], width: int, inputs: Collection[str], device: torch.device
) -> tuple[Tensor, dict[str, Any]]:
    """Ids, mask and positions of a batch of runs. Before the runs' own tokens there are no ids: nothing reads them."""
    ids = torch.zeros(len(runs), width, dtype=torch.int64)
    mask = torch.zeros(len(runs), width, dtype=torch.int64)
    for row, each in enumerate(runs):
        ids[row, width - len(each.ids) :] = each.ids
        mask[row, width - each.end :] = 1
    named: dict[str, Any] = {"use_cache": True, "attention_mask": None if bool(mask.all()) else mask.to(device)}
    if "logits_to_keep" in inputs:
        named["logits_to_keep"] = 1
    if "position_ids" in inputs:
        named["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    return ids.to(device), named
