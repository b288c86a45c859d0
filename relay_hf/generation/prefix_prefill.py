"""Prefilling a forest of shared prefixes: level by level, the nodes of a level as one batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cache_utils import PrefixKV, RelayCache, RowLayout
from ..model.fingerprint import ModelFingerprint, embedding_samples
from ..prefix import KeptPrefix, PrefixEntry, PrefixNode
from ..prefix.store import token_overhead
from ..reasons import Reason, Refusal
from ..report import readable_bytes
from .call import GenerateCall
from .facts import CallFacts
from .forward_rows import forward_rows

# A kept run in more pieces is joined for the call. This costs a copy, but each piece would cost one more part of
# attention in every layer of every decode step, 0.06 ms with tiny operands. A conversation of a model with recurrent
# layers has as many pieces as turns, because each turn has a state at its end.
_MOST_PIECES = 4

PrefilledTree = list[tuple[PrefixNode, list[PrefixKV]]]  # nodes with their KV, in pieces
_Path = tuple[tuple[PrefixNode, list[PrefixKV]], ...]  # a node and those before it, from the first one on


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
        held: gives the KV of a kept run.
        inputs: names of the keyword inputs of the call's forwards.
        chunk: tokens of a run to put through the model at once, or None for all.

    Returns:
        Every run with its KV, each after the run before it.
    """
    done: PrefilledTree = []
    ready: list[tuple[PrefixNode, _Path]] = [(each, ()) for each in runs]
    while ready:
        level, missing = ready, []
        while level:  # a kept run needs no forward, so the runs that follow it are in the same level
            each, path = level.pop()
            if each.kept:
                pieces = held(each)
                done.append((each, [PrefixKV.joined(pieces)] if len(pieces) > _MOST_PIECES else pieces))
                level += [(child, (*path, done[-1])) for child in each.children]
            else:
                missing.append((each, path))
        ready = []
        # Only if a run is missing, because this takes 0.7 ms for 33 layers.
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
    """`prefill_tree`; then keep the prefilled runs for later calls, if the model stayed the same meanwhile.

    `before`: the fingerprint of the model when the store was searched; None if nothing was found. `pin`: pin the runs.

    Returns:
        The result of `prefill_tree`, and the new kept prefixes, in the order of the runs that were not kept before.
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
        # Another thread has changed PyTorch's settings, so the KV was computed partly under one, partly under another.
        return filled, [None for _ in missing]
    pieces = dict(filled)
    new = [PrefixEntry(ids, pieces[each][0], seen, pinned=pin) for (each, ids), seen in zip(missing, rows, strict=True)]
    return filled, call.facts.source.keep(before, view.modules, new, key)


def why_unkept(facts: CallFacts, filled: PrefilledTree) -> Refusal:
    """Why the store has not kept all runs of a tree that was prefilled."""
    token, store = token_overhead(facts.view.embedding), facts.store
    size = max(sum(piece.nbytes + piece.length * token for piece in own) for _, own in filled)
    if size > store.budget or any(each.pinned for each in store.prefixes):
        return Reason.OVER_BUDGET.of(size=readable_bytes(size), budget=readable_bytes(store.budget))
    return Reason.CHANGED_MEANWHILE.of()


def _with_ids(runs: list[PrefixNode]) -> Iterator[tuple[PrefixNode, Tensor]]:
    """Every run of a forest after the run before it, with all tokens from position 0 to its end."""
    stack = [(run, run.ids) for run in reversed(runs)]
    while stack:
        run, ids = stack.pop()
        yield run, ids
        stack += [(child, torch.cat([ids, child.ids])) for child in reversed(run.children)]


def _batches(level: list[tuple[PrefixNode, _Path]], gapless: bool) -> Iterator[list[tuple[PrefixNode, _Path]]]:
    """The runs of a level, in batches in which none is more than twice as long as another.

    A batch is padded to its longest run: a document of 4,000 tokens beside 15 of 50 would take 14 times the work.
    `gapless`: recurrent layers see padding as tokens, so only runs at the same positions may form a batch.
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
    # The order is that of the tokens: a run comes before those that follow it.
    shared = [(tuple(indices), piece) for each, indices in users.items() for piece in pieces[each]]
    cache = RelayCache(view.text_config)
    cache.share(shared, rows, len(batch))
    captured: dict[int, tuple[Tensor, Tensor]] = {}
    call.cache, call.capture = cache, captured
    ids, own_inputs = _inputs(runs, width, inputs, device)
    forward_rows(call.facts, ids, own_inputs, cache, rows.offset, chunk)
    call.capture = None
    alone = len(batch) == 1  # otherwise rows are copied, because views would hold the memory of the whole batch
    return [
        cache.freeze(captured, each.start, len(each.ids), None if alone else index) for index, each in enumerate(runs)
    ]


def _inputs(
    runs: list[PrefixNode], width: int, inputs: Collection[str], device: torch.device
) -> tuple[Tensor, dict[str, Any]]:
    """Ids, mask and positions of a batch of runs. Ids before the runs' own tokens are 0, because nothing reads them."""
    ids = torch.zeros(len(runs), width, dtype=torch.int64, device="cpu")
    mask = torch.zeros_like(ids)
    for row, each in enumerate(runs):
        ids[row, width - len(each.ids) :] = each.ids
        mask[row, width - each.end :] = 1
    named: dict[str, Any] = {"use_cache": True, "attention_mask": None if bool(mask.all()) else mask.to(device)}
    if "logits_to_keep" in inputs:
        named["logits_to_keep"] = 1
    if "position_ids" in inputs:
        named["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    return ids.to(device), named
