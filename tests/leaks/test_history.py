"""A call's output does not depend on what earlier calls kept, whatever became of that."""

import copy
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import relay_hf
from tests.support.sweeps import all_but_swept

from .batches import batches, own_tokens
from .scores import FAMILIES, SETTINGS, run, stock, tolerance

# All prefixes, a few, one or two, none: so prefixes are evicted, in part too.
BUDGETS = [10**9, 10**9, 30_000, 8_000, 0]


class Interrupt(Exception):
    pass


def interrupted(model, batch):
    """A call that raises after its first token."""

    def stop(input_ids, scores):
        raise Interrupt

    with pytest.raises(Interrupt):
        model.generate(**batch.inputs(), max_new_tokens=3, logits_processor=[stop])


def warmed(model, batch):
    """The start of a row, kept ahead of it; a budget may be too small."""
    with suppress(relay_hf.RelayError):
        model.relay.warm(batch.rows[0][:-1], pin=len(batch.own) % 2 == 0)


EARLIER = {
    "call": run,
    "interrupted": interrupted,
    "warm": warmed,
    "clear": lambda model, batch: model.relay.clear(),
    "stock's turn": lambda model, batch: model(**batch.inputs()),
}
KINDS = ["call", "call", "call", "call", "interrupted", "warm", "stock's turn", "clear"]


@st.composite
def akin(draw, batch):
    """The same rows with other own tokens, rows that go on from the start of one of these, or any."""
    how = draw(st.sampled_from(["the same", "a start", "any"]))
    if how == "the same":
        return replace(batch, own=tuple(tuple(draw(own_tokens)) for _ in batch.own))
    other = draw(batches(least_rows=1))
    if how == "any":
        return other
    start = tuple(batch.rows[0][: draw(st.integers(4, len(batch.rows[0])))])
    return replace(other, shared=(start,) * len(other.own))


@pytest.mark.parametrize("family", all_but_swept(FAMILIES))
def test_a_call_is_the_same_after_any_earlier_ones(family):
    reused = []

    @settings(SETTINGS, max_examples=10)
    @given(st.data())
    def examples(data):
        batch = data.draw(batches())
        options = {"policy": "always", "min_prefix_length": 1}
        fresh = relay_hf.patch_model(copy.deepcopy(stock(family)), **options)
        used = relay_hf.patch_model(
            copy.deepcopy(stock(family)), **options, max_store_bytes=data.draw(st.sampled_from(BUDGETS))
        )
        for kind in data.draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=4)):
            EARLIER[kind](used, data.draw(akin(batch)))
        (tokens, logits), (tokens_after, logits_after) = run(fresh, batch), run(used, batch)
        assert fresh.relay.last.relayed, fresh.relay.last
        assert used.relay.last.relayed, used.relay.last
        reused.append(used.relay.last.prefix_tokens_reused > 0)
        assert torch.equal(tokens, tokens_after)
        assert float((logits - logits_after).abs().max()) <= tolerance(family)

    examples()
    assert sum(reused) >= 4, "hardly an example reads what an earlier call kept"
