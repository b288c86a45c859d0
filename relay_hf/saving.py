"""Kept prefixes to a file and back, for another process of the same model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .call import open_call
from .frame import RelayError
from .identity import difference, identity_of
from .keeping import Prefilled, context_of, embedded
from .levels import fill
from .prefix import KeptPrefix, PrefixFile, Run, StoredPrefix, write
from .prefix.layout import rebuilt
from .warming import check_keepable, read_prefix

if TYPE_CHECKING:
    from .cache_utils import SharedRun
    from .relay import Relay


_RAISE = "raise max_store_bytes"


def save_prefixes(relay: Relay, path: Path, chosen: Collection[KeptPrefix] | None) -> tuple[KeptPrefix, ...]:
    """Write kept prefixes, and what they extend; inside an open call."""
    keeper, modules, embedding = relay.keeper, open_call().modules, relay.model.get_input_embeddings()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists; there is no {path.parent}. Create it first.")
    nodes, stored, before = keeper.stored(modules, embedding, context_of(relay.model), chosen)
    gone = [each for each in chosen or () if each not in nodes]
    if gone:
        raise ValueError(f"prefixes must be of `model.relay.prefixes`; {gone[0]!r} is not kept any more.")
    if before is None or not nodes:
        raise RelayError(
            "no prefix is kept, so there is nothing to save. Warm one, or generate; what was kept is dropped when the "
            "model changes, and serves only the device, dtype and autocast it was kept under."
        )
    identity = identity_of(relay.model)
    if not before.same(keeper.witness(modules)):
        raise RelayError("the model changed while its weights were read; save again.")
    write(path, identity, stored)
    return tuple(nodes)


def load_prefixes(relay: Relay, path: Path, mmap: bool) -> tuple[KeptPrefix, ...]:
    """Keep the prefixes of a file, if they are this model's; inside an open call."""
    model, modules = relay.model, open_call().modules
    file = PrefixFile(path)
    before = relay.keeper.witness(modules)
    other = difference(file.identity, model)
    if other is not None:
        raise file.error(f"has prefixes of {other}")
    check_keepable(relay, 1)
    budget = relay.keeper.store.budget
    if file.nbytes > budget:
        raise RelayError(f"{path} holds {file.nbytes} bytes, more than the store's budget of {budget}: {_RAISE}.")
    stored = list(file.prefixes(_of_one_token(relay), mmap))
    longest = max((len(read_prefix(model, ids, None)) for ids in _whole(stored)), default=1)
    check_keepable(relay, longest)
    embedding, context = model.get_input_embeddings(), context_of(model)
    new = (
        Prefilled(ids, rebuilt(each.run, lambda _, tensor, __: tensor.to(model.device)), embedded(embedding, each.ids))
        for ids, each in zip(_whole(stored), stored, strict=True)
    )
    kept = relay.keeper.keep(before, modules, new, context, join=False)
    if None in kept:
        raise RelayError(
            f"not all prefixes of {path} could be kept: the model changed meanwhile, or pinned prefixes leave too "
            f"little of the store's budget of {budget} bytes: {_RAISE}."
        )
    found = tuple(each for each in kept if each is not None)
    for each, prefix in zip(stored, found, strict=True):
        prefix.pinned = prefix.pinned or each.pinned
    return found


def _of_one_token(relay: Relay) -> SharedRun:
    """What the model keeps of a token: which tensors, of which dtypes and shapes."""
    run = Run(0, torch.zeros(1, dtype=torch.int64), (0,))
    inputs = relay.forward_inputs.keys() & {"position_ids", "logits_to_keep"}
    ((_, (found,)),) = fill(relay, [run], lambda _: [], inputs)
    return found


def _whole(stored: Sequence[StoredPrefix]) -> Iterator[Tensor]:
    """All tokens of each prefix, those that it extends included; one at a time, since together they may be many."""
    for each in stored:
        parts, place = [each.ids], each.parent
        while place is not None:
            parts.append(stored[place].ids)
            place = stored[place].parent
        yield torch.cat(parts[::-1])
