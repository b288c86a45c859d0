"""What is evicted, cleared, replaced or unpatched frees its memory."""

import gc
import weakref

import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.kept_bytes import held_bytes
from tests.support.tiny_models import tiny_model

from .memory import Held, live_bytes

ROWS = (3, 7, 1)
ROW = prompts(60, (5,), seed=3)
LONG, OTHER = ROW["input_ids"][0, :60], prompts(20, (1,), seed=4)["input_ids"][0, :20]
FEW = 4096  # bytes of small tensors that may stay, such as what tells whether a token is embedded as it was


@pytest.fixture(params=["llama", "bamba", "gptj"])
def model(request, newcomers):
    model = relay_hf.patch_model(tiny_model(request.param), policy="always")
    generate(model, prompts(20, ROWS, seed=9))  # what a first call leaves for good is there
    model.relay.clear()
    newcomers()
    return model


def fill(model, seeds):
    for seed in seeds:
        generate(model, prompts(20, ROWS, seed=seed))
        assert model.relay.last.relayed


def halve(model):
    relay_hf.patch_model(model, max_store_bytes=model.relay._hooks.store.tree.nbytes // 2)


def retrain(model):
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.relay.warm([5] * 4)


EMPTYING = {
    "cleared": lambda model: model.relay.clear(),
    "unpatched": relay_hf.unpatch_model,
    "trained": lambda model: model.train().eval(),
    "another budget": halve,
    "changed weights": retrain,
}


@pytest.mark.parametrize("how", EMPTYING)
def test_memory_of_what_is_dropped_returns(model, how):
    gc.collect()
    before = live_bytes()
    fill(model, range(3))
    kept = model.relay.prefixes
    held, nodes = Held(kept), [weakref.ref(node) for node in kept]
    size, ids = model.relay._hooks.store.tree.nbytes, sum(len(node.data) for node in kept)
    assert size == sum(node.nbytes for node in kept) > 0
    del kept
    gc.collect()
    assert held.alive() == len(held)
    assert live_bytes() - before >= size - ids
    EMPTYING[how](model)
    gc.collect()
    assert (held.alive(), held.seen()) == (0, 0)
    assert [node for node in nodes if node() is not None] == []
    left = model.relay._hooks.store.tree.nbytes if hasattr(model, "relay") else 0  # of four tokens that were warmed
    assert live_bytes() - before <= left + FEW


def test_memory_of_what_is_evicted_returns(model):
    fill(model, [0])
    budget = int(2.5 * model.relay._hooks.store.tree.nbytes)
    relay_hf.patch_model(model, max_store_bytes=budget)
    gc.collect()
    before = live_bytes()
    fill(model, [0])
    held = Held(model.relay.prefixes)
    node = weakref.ref(model.relay.prefixes[0])
    fill(model, [1])
    assert held.alive() == len(held)
    fill(model, [2])
    gc.collect()
    assert (held.alive(), held.seen()) == (0, 0)
    assert node() is None
    assert len(model.relay.prefixes) == 2
    ids = sum(len(node.data) for node in model.relay.prefixes)  # which are no tensors
    assert 0 < model.relay._hooks.store.tree.nbytes - ids <= live_bytes() - before <= budget


# Recurrent layers' states belong to one token: they are not divided, nor joined, and an answer's serve no next turn.
ATTENDING = pytest.mark.parametrize("model", ["llama", "gptj"], indirect=True)


def divided(model):
    """A prefix of 60 tokens that others have divided in three: views of the same memory."""
    for length in (60, 40, 20):
        model.relay.warm(LONG[:length])
    parts = sorted(model.relay.prefixes, key=len)
    assert [len(part) for part in parts] == [20, 40, 60]
    return parts


def assert_holds_what_it_says(model, before):
    """The memory that is held is what the store counts, and no part of anything larger; all of it leaves."""
    gc.collect()
    kept, store = model.relay.prefixes, model.relay._hooks.store.tree
    assert held_bytes(kept) == store.nbytes == sum(node.nbytes for node in kept) > 0
    ids = sum(len(node.data) for node in kept)  # which are no tensors
    assert store.nbytes - ids <= live_bytes() - before <= store.nbytes + FEW
    held = Held(kept)
    del kept, store
    model.relay.clear()
    gc.collect()
    assert (held.alive(), held.seen()) == (0, 0)
    assert live_bytes() - before <= FEW


@ATTENDING
def test_memory_of_a_part_that_is_evicted_returns(model):
    """At once: the parts that stay are copied, or they would hold all of it."""
    divided(model)
    relay_hf.patch_model(model, max_store_bytes=model.relay._hooks.store.tree.nbytes)
    gc.collect()
    before = live_bytes()
    parts = divided(model)
    held, last = Held(parts), weakref.ref(parts[-1])
    del parts
    assert held.alive() == len(held)
    model.relay.warm(OTHER)
    assert sorted(map(len, model.relay.prefixes)) == [20, 20, 40]
    assert last() is None
    assert (held.alive(), held.seen()) == (0, 0)
    assert_holds_what_it_says(model, before)


@ATTENDING
def test_memory_of_parts_that_are_joined_returns(model):
    """Two of three parts are joined with what follows them; the first, which something else follows too, is copied."""
    gc.collect()
    before = live_bytes()
    held = Held(divided(model))
    model.relay.warm(torch.cat([LONG[:20], OTHER]))
    assert held.alive() == len(held)
    model.relay.warm(torch.cat([LONG, OTHER]))
    assert sorted(map(len, model.relay.prefixes)) == [20, 40, 80]
    assert (held.alive(), held.seen()) == (0, 0)
    assert_holds_what_it_says(model, before)


def test_a_row_that_is_kept_whole_holds_its_own_tokens_alone(model):
    """Not the call's cache, which has room for tokens to come."""
    gc.collect()
    before = live_bytes()
    tokens = generate(model, ROW)
    assert [len(kept) for kept in model.relay.prefixes] == [tokens.shape[1] - 1]  # the last one was not put through
    assert_holds_what_it_says(model, before)


@ATTENDING
def test_a_row_that_goes_on_from_a_kept_one_leaves_one_memory(model):
    gc.collect()
    before = live_bytes()
    tokens = generate(model, ROW)
    held = Held(model.relay.prefixes)
    turn = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    generate(model, turn, max_new_tokens=24, min_new_tokens=24)
    assert model.relay.last.prefix_tokens_reused == tokens.shape[1] - 1
    assert [len(kept) for kept in model.relay.prefixes] == [tokens.shape[1] + 23]
    assert (held.alive(), held.seen()) == (0, 0), "what was kept has been joined with what follows it"
    assert_holds_what_it_says(model, before)


def test_a_call_that_raises_holds_no_memory(model):
    def stop(input_ids, scores):
        raise InterruptedError

    gc.collect()
    before = live_bytes()
    with pytest.raises(InterruptedError):
        generate(model, prompts(20, ROWS), logits_processor=[stop])
    gc.collect()
    assert live_bytes() - before <= model.relay._hooks.store.tree.nbytes + FEW
    model.relay.clear()
    gc.collect()
    assert live_bytes() - before <= FEW


def test_no_reference_to_a_call_outlives_it(model):
    caches = []
    generate(model, prompts(20, ROWS), logits_processor=[lambda ids, scores: caches.append(call_cache()) or scores])
    assert caches
    assert caches[0]() is None


def call_cache():
    from relay_hf.generation.call import current_call

    return weakref.ref(current_call().cache)
