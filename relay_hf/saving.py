"""Kept prefixes to a file and back, for another process of the same model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from .call import open_call
from .errors import RelayError, printable
from .identity import difference, identity_of
from .keeping import Prefilled, beside_token, embedded, reach_of
from .prefix import KeptPrefix, Planned, PrefixFile, beside, is_there, write
from .prefix.file_tensors import rebuilt
from .warming import check_keepable, check_prefix, of_one_token

if TYPE_CHECKING:
    from .relay import Relay


def save_prefixes(relay: Relay, path: Path, chosen: Collection[KeptPrefix] | None) -> tuple[KeptPrefix, ...]:
    """Write kept prefixes, and what they extend; inside an open call."""
    keeper, modules, embedding = relay.keeper, open_call().modules, relay.model.get_input_embeddings()
    if not is_there(path) and not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists; there is no {path.parent}. Create it first.")
    if chosen is not None and not chosen:
        raise ValueError("prefixes must name one at least; got none. Leave it out to save all.")
    nodes, stored, before = keeper.stored(modules, embedding, reach_of(relay.model), chosen)
    held = {node.ids.numpy().tobytes() for node in nodes}
    gone = [each for each in chosen or () if each.ids.numpy().tobytes() not in held]
    if gone:
        raise ValueError(
            f"prefixes must be of `model.relay.prefixes`; {gone[0]!r} is not kept any more, or under another device, "
            "dtype, autocast, arithmetic or CUDA stream. Pin what is to stay."
        )
    if before is None or not nodes:
        raise RelayError(
            "no prefix is kept, so there is nothing to save. Warm one, or generate; what was kept is dropped when the "
            "model changes, and serves only the device, dtype, autocast, arithmetic and CUDA stream it was kept under."
        )
    identity = identity_of(relay.model, before)
    if not before.same(keeper.witness(modules)):
        raise RelayError("the model changed while its weights were read; save again.")
    write(path, identity, stored)
    return tuple(nodes)


def load_prefixes(relay: Relay, path: Path, mmap: bool) -> tuple[KeptPrefix, ...]:
    """Keep the prefixes of a file, all or none, if they are this model's; inside an open call."""
    model, keeper, modules, context = relay.model, relay.keeper, open_call().modules, reach_of(relay.model)
    embedding = model.get_input_embeddings()
    with PrefixFile(path) as file:
        before = keeper.witness(modules)
        check_keepable(relay, 1)
        template = of_one_token(relay)  # puts a token through the model, which sets buffers that depend on the length
        other = difference(file.identity, model)
        if other is not None:
            raise file.error(f"has prefixes of {other}")
        size = file.check(template, beside_token(embedding))
        holds = f"{printable(path)} holds {size} bytes"
        if size > keeper.budget:
            raise RelayError(f"{holds}, more than the store's budget of {keeper.budget}: {_RAISE}.")
        stored = file.read(template, mmap)
    longest = max((each.run.end for each in stored), default=1)
    try:
        for each in stored:
            check_prefix(model, each.ids, longest, "its prefixes")
    except ValueError as error:
        raise file.error(f"has token ids that this model does not take ({error})") from None
    check_keepable(relay, longest)
    runs = [rebuilt(each.run, lambda _, tensor, __: tensor.to(model.device)) for each in stored]
    rows = [embedded(embedding, each.ids) for each in stored]
    planned = [
        Planned(each.ids, run.length, run.nbytes + beside(seen), each.parent)
        for each, run, seen in zip(stored, runs, rows, strict=True)
    ]
    short = keeper.lacks(planned, context, make_room=True)
    if short:
        raise RelayError(
            f"{holds}, and pinned prefixes leave {short} too few of the store's budget of {keeper.budget}: {_RAISE}, "
            "or let some of them go."
        )
    new = (
        Prefilled(each.ids, run, seen, each.pinned, each.parent)
        for each, run, seen in zip(stored, runs, rows, strict=True)
    )
    kept = keeper.keep(before, modules, new, context, join=False)
    found = tuple(each for each in kept if each is not None)
    if len(found) < len(stored):
        what = "could not be kept: the model changed meanwhile; load them again."
        raise RelayError(f"the prefixes of {printable(path)} {what}")
    return found


_RAISE = "raise max_store_bytes"
