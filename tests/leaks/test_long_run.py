"""A thousand calls with changing prefixes hold as much memory as the first hundred."""

import gc
import resource

import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.tiny_models import tiny_model

from .memory import live_bytes, objects

CALLS, EVERY, WARM_UP = 1000, 100, 2
FEW_BYTES = 2 * 1024  # ids, and what tells whether tokens are embedded as they were, of what is kept
FEW_OBJECTS = 60  # nodes of the tree, as many as the budget holds: one object a call would be 700


def stop(input_ids, scores):
    raise InterruptedError


def call(model, number):
    """Each prefix serves a few calls, then another comes; single rows, trees, and calls that raise are among them."""
    inputs = prompts(24, (3, 5), seed=number // 3)
    if number % 7 == 0:
        inputs = {name: tensor[:1] for name, tensor in inputs.items()}
    if number % 5 == 0:
        inputs = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
    if number % 11 == 0:
        with pytest.raises(InterruptedError):
            model.generate(**inputs, max_new_tokens=2, logits_processor=[stop])
    else:
        model.generate(**inputs, max_new_tokens=2)
    if number % 13 == 0:
        model.relay.warm(inputs["input_ids"][0, -20:], pin=False)


@pytest.mark.sweep
def test_memory_stays_flat_and_within_the_budget(newcomers):
    model = relay_hf.patch_model(tiny_model("llama", num_hidden_layers=1), policy="always")
    call(model, 1)
    budget = 5 * model.relay._hooks.store.tree.nbytes
    relay_hf.patch_model(model, max_store_bytes=budget)
    newcomers()
    measured = []
    for number in range(1, CALLS + 1):
        call(model, number)
        if number % EVERY == 0:
            seen, resident = objects(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            measured.append((live_bytes(), seen, model.relay._hooks.store.tree.nbytes))
            print(f"after {number} calls: {measured[-1]}, at most {resident} KiB resident")
    assert model.relay.stats().calls == CALLS + 1
    assert model.relay.stats().relayed_calls > 0.9 * CALLS
    assert model.relay.stats().prefix_tokens_reused > 5 * CALLS
    for tensors, _, kept in measured:
        assert budget / 2 < kept <= budget
        assert tensors <= budget + FEW_BYTES
    settled = [seen for _, seen, _ in measured[WARM_UP:]]
    assert max(settled) - min(settled) <= FEW_OBJECTS
    model.relay.clear()
    gc.collect()
    assert live_bytes() <= FEW_BYTES
