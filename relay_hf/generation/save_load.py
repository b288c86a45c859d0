"""`model.relay.save()` and `load()`: kept prefixes to a file and back, for another process of the same model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..errors import RelayError, printable
from ..model.fingerprint import embedding_samples
from ..model.identity import difference, identity_of
from ..model.vocabulary import check_prefix
from ..prefix import KeptPrefix, Planned, PrefixEntry, PrefixFile, is_there, overhead_bytes, write
from ..prefix.file_tensors import rebuilt
from ..prefix.store import token_overhead
from .call import GenerateCall
from .facts import CallFacts
from .warm import check_keepable, kv_of_one_token


def save_prefixes(facts: CallFacts, path: Path, chosen: Collection[KeptPrefix] | None) -> tuple[KeptPrefix, ...]:
    """Write kept prefixes, with the prefixes that they extend."""
    view, store = facts.view, facts.store
    if not is_there(path) and not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists; there is no {path.parent}. Create it first.")
    if chosen is not None and not chosen:
        raise ValueError("prefixes must name one at least; got none. Leave it out to save all.")
    wrong = [each for each in chosen or () if not isinstance(each, KeptPrefix)]
    if wrong:
        raise TypeError(
            f"prefixes must be some of `model.relay.prefixes`; got {wrong[0]!r} of type {type(wrong[0]).__name__}."
        )
    nodes, stored, before = store.stored(view.modules, view.embedding, view.store_key, chosen)
    held = {node.ids.numpy().tobytes() for node in nodes}
    gone = [each for each in chosen or () if each.ids.numpy().tobytes() not in held]
    if gone:
        raise ValueError(
            f"prefixes must be of `model.relay.prefixes`; {gone[0]!r} is not kept any more, or under another device, "
            "dtype, autocast, arithmetic or CUDA stream. Pin what is to stay."
        )
    if before is None or not nodes:
        raise RelayError(
            "no prefix is kept, so there is nothing to save. Warm one, or generate; kept prefixes are dropped when the "
            "model changes, and serve only the device, dtype, autocast, arithmetic and CUDA stream they were made for."
        )
    identity = identity_of(view, before)
    if not before.same(store.fingerprint(view.modules)):
        raise RelayError("the model changed while its weights were read; save again.")
    write(path, identity, stored)
    return tuple(nodes)


def load_prefixes(call: GenerateCall, path: Path, mmap: bool) -> tuple[KeptPrefix, ...]:
    """Keep the prefixes of a file, all or none, if they are this model's."""
    facts, view, store = call.facts, call.facts.view, call.facts.store
    key, embedding = view.store_key, view.embedding
    with PrefixFile(path) as file:
        before = store.fingerprint(view.modules)
        check_keepable(facts, 1)
        template = kv_of_one_token(call)  # puts a token through the model, which sets buffers that depend on the length
        other = difference(file.identity, view)
        if other is not None:
            raise file.error(f"has prefixes of {other}")
        size = file.check(template, token_overhead(embedding))
        holds = f"{printable(path)} holds {size} bytes"
        if size > store.budget:
            raise RelayError(f"{holds}, more than the store's budget of {store.budget}: {_RAISE}.")
        stored = file.read(template, mmap)
    longest = max((each.kv.end for each in stored), default=1)
    try:
        for each in stored:
            check_prefix(view.model, each.ids, longest, "its prefixes")
    except ValueError as error:
        raise file.error(f"has token ids that this model does not take ({error})") from None
    check_keepable(facts, longest)
    runs = [rebuilt(each.kv, lambda _, tensor, __: tensor.to(view.model.device)) for each in stored]
    rows = [embedding_samples(embedding, each.ids) for each in stored]
    planned = [
        Planned(each.ids, run.length, run.nbytes + overhead_bytes(seen), each.parent)
        for each, run, seen in zip(stored, runs, rows, strict=True)
    ]
    short = store.lacks(planned, key, make_room=True)
    if short:
        raise RelayError(
            f"{holds}, and pinned prefixes leave {short} too few of the store's budget of {store.budget}: {_RAISE}, "
            "or let some of them go."
        )
    new = (
        PrefixEntry(each.ids, run, seen, each.parent, each.pinned)
        for each, run, seen in zip(stored, runs, rows, strict=True)
    )
    kept = store.keep(before, view.modules, new, key, join=False)
    found = tuple(each for each in kept if each is not None)
    if len(found) < len(stored):
        what = "could not be kept: the model changed meanwhile; load them again."
        raise RelayError(f"the prefixes of {printable(path)} {what}")
    return found


_RAISE = "raise max_store_bytes"
