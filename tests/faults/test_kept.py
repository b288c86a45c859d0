"""The store of kept prefixes, stopped at every operation and at every line of what it does."""

from contextlib import suppress

import pytest
import torch

from relay_hf.prefix import radix
from relay_hf.prefix.radix import RadixTree
from tests.prefix.test_radix import CONTEXT, TOKEN, add, tensor_of, tokens
from tests.support.kept_bytes import held_bytes

from .inject import Fault, Lines, Operations

ONE, TWO, HALF = tokens(1, 2, 3, 4), tokens(1, 2, 5), tokens(1, 2)
LONG = tokens(1, 2, 3, 4, 6)


def divided():
    """A prefix in two halves of the same memory, and one beside it that is pinned."""
    kept = RadixTree(12 * TOKEN)
    add(kept, ONE)
    kept.ending(HALF, CONTEXT)
    add(kept, tokens(9, 9)).pinned = True
    return kept


def half_pinned():
    kept = divided()
    kept.ending(HALF, CONTEXT).pinned = True
    return kept


CHANGES = {
    "divides one": (divided, lambda kept: add(kept, tokens(1, 7), start=1)),
    "joins a half with what follows it": (divided, lambda kept: add(kept, LONG, start=4)),
    "goes on from a half": (divided, lambda kept: add(kept, TWO, start=2)),
    "keeps a copy": (divided, lambda kept: add(kept, tokens(1, 2, 5, 6), start=2, most=TOKEN)),
    "evicts a half": (half_pinned, lambda kept: add(kept, torch.arange(20, 28))),
    "evicts both": (divided, lambda kept: add(kept, torch.arange(20, 30))),
    "adds a state": (divided, lambda kept: add(kept, ONE, recurrent=True)),
    "finds an end": (divided, lambda kept: kept.ending(tokens(1), CONTEXT)),
    "drops all": (divided, lambda kept: kept.clear()),
    "drops what is not pinned": (half_pinned, lambda kept: kept.release()),
}
# Sets have another order in each run: what is counted in one may not all come in the next.
OFTEN = pytest.mark.parametrize("change", CHANGES)


def assert_whole(kept):
    nodes = set(kept)
    assert nodes == {node for root in kept._roots.values() for node in kept.under(root.context)}
    assert all(node.siblings <= nodes and node in node.siblings for node in nodes)
    assert kept.nbytes == sum(node.nbytes for node in nodes)
    assert held_bytes(nodes) == kept.nbytes
    for node in nodes:
        assert len(node.tokens) == len(node.embedded) == node.run.length == len(node) - node.run.start
        keys = node.run.layers[0].kv.segment.key
        assert torch.equal(keys, tensor_of(node.ids)[:, node.run.start :])


@OFTEN
def test_memory_that_runs_out_leaves_what_was_kept_whole_and_pinned(change):
    build, run = CHANGES[change]
    kept = build()
    with Operations(clean := Fault("memory", None)):
        run(kept)
    for at in range(clean.asked):
        kept = build()
        pinned = {tuple(node.ids.tolist()) for node in kept if node.pinned}
        with suppress(torch.OutOfMemoryError), Operations(Fault("memory", at)):
            run(kept)
        assert_whole(kept)
        assert pinned <= {tuple(node.ids.tolist()) for node in kept if node.pinned}
        run(kept)
        assert_whole(kept)
        assert kept.nbytes <= kept.budget


@OFTEN
def test_an_interrupt_at_any_line_leaves_nothing_half_made(change):
    build, run = CHANGES[change]
    kept = build()
    with Lines(clean := Fault("interrupt", None), radix.__file__):
        run(kept)
    assert clean.asked
    for at in range(clean.asked):
        kept = build()
        with suppress(KeyboardInterrupt), Lines(Fault("interrupt", at), radix.__file__):
            run(kept)
        assert_whole(kept)
        run(kept)
        assert_whole(kept)
        assert kept.nbytes <= kept.budget


def test_what_is_not_pinned_makes_way_without_a_copy():
    """A half that shares its memory with a pinned one would free nothing."""
    kept = half_pinned()
    add(kept, torch.arange(20, 24))
    with Operations(operations := Fault("memory", None)):
        kept.release()
    assert not operations.asked
    assert {tuple(node.ids.tolist()) for node in kept} == {(1, 2), (1, 2, 3, 4), (9, 9)}
    kept.ending(HALF, CONTEXT).pinned = False
    kept.release()
    assert {tuple(node.ids.tolist()) for node in kept} == {(9, 9)}
    assert_whole(kept)
