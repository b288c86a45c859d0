"""What is evicted, cleared, replaced or unpatched frees its memory."""

import gc
import weakref

import pytest
import torch

import relay_hf
from helpers import generate
from relay_hf.testing import prompts, tiny_model

from .memory import alive, live_bytes, storages_of

ROWS = (3, 7, 1)
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
    relay_hf.patch_model(model, max_store_bytes=model.relay.keeper.store.nbytes // 2)


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
    held, nodes = storages_of(kept), [weakref.ref(node) for node in kept]
    size, ids = model.relay.keeper.store.nbytes, sum(len(node.data) for node in kept)
    assert size == sum(node.nbytes for node in kept) > 0
    del kept
    gc.collect()
    assert alive(held) == len(held)
    assert live_bytes() - before >= size - ids
    EMPTYING[how](model)
    gc.collect()
    assert alive(held) == 0
    assert [node for node in nodes if node() is not None] == []
    left = model.relay.keeper.store.nbytes if hasattr(model, "relay") else 0  # of four tokens that were warmed
    assert live_bytes() - before <= left + FEW


def test_memory_of_what_is_evicted_returns(model):
    fill(model, [0])
    budget = int(2.5 * model.relay.keeper.store.nbytes)
    relay_hf.patch_model(model, max_store_bytes=budget)
    gc.collect()
    before = live_bytes()
    fill(model, [0])
    held = storages_of(model.relay.prefixes)
    node = weakref.ref(model.relay.prefixes[0])
    fill(model, [1])
    assert alive(held) == len(held)
    fill(model, [2])
    gc.collect()
    assert alive(held) == 0
    assert node() is None
    assert len(model.relay.prefixes) == 2
    ids = sum(len(node.data) for node in model.relay.prefixes)  # which are no tensors
    assert 0 < model.relay.keeper.store.nbytes - ids <= live_bytes() - before <= budget


def test_a_call_that_raises_holds_no_memory(model):
    def stop(input_ids, scores):
        raise InterruptedError

    gc.collect()
    before = live_bytes()
    with pytest.raises(InterruptedError):
        generate(model, prompts(20, ROWS), logits_processor=[stop])
    gc.collect()
    assert live_bytes() - before <= model.relay.keeper.store.nbytes + FEW
    model.relay.clear()
    gc.collect()
    assert live_bytes() - before <= FEW


def test_no_reference_to_a_call_outlives_it(model):
    caches = []
    generate(model, prompts(20, ROWS), logits_processor=[lambda ids, scores: caches.append(call_cache()) or scores])
    assert caches
    assert caches[0]() is None


def call_cache():
    from relay_hf.call import open_call

    return weakref.ref(open_call().cache)
