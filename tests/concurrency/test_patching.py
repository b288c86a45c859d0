"""Patching and unpatching while other threads generate."""

import copy
import sys
from threading import Barrier

import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.model_snapshot import snapshot
from tests.support.tiny_models import tiny_model

from .threads import AtToken, Gate, together

INPUTS = prompts(20, (3, 7, 1, 5))
REFUSED = r"model can't be unpatched while it generates; 1 of its calls run now"


def patched_pair(family="llama"):
    stock = tiny_model(family)
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


def test_unpatching_while_another_thread_generates_is_refused_and_works_afterwards():
    stock = tiny_model("llama")
    model, gate = copy.deepcopy(stock), Gate()
    before = snapshot(model)
    relay_hf.patch_model(model, policy="always")
    with gate.held(lambda: generate(model, INPUTS, stopping_criteria=[AtToken(gate)])) as running:
        with pytest.raises(relay_hf.RelayError, match=REFUSED):
            relay_hf.unpatch_model(model)
        assert model.relay.config.policy == "always"
    assert torch.equal(running.result(), generate(stock, INPUTS))
    assert model.relay.last.relayed
    relay_hf.unpatch_model(model)
    assert snapshot(model) == before
    assert torch.equal(generate(model, INPUTS), generate(stock, INPUTS))


def test_unpatching_from_inside_of_a_call_is_refused():
    stock, model = patched_pair()

    def unpatch(input_ids, scores):
        with pytest.raises(relay_hf.RelayError, match=REFUSED):
            relay_hf.unpatch_model(model)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    assert torch.equal(generate(model, INPUTS, stopping_criteria=[unpatch]), generate(stock, INPUTS))
    assert model.relay.last.relayed


def test_a_block_that_ends_while_another_thread_generates_says_so_and_leaves_the_model_patched():
    stock = tiny_model("llama")
    model, gate = copy.deepcopy(stock), Gate()
    block = relay_hf.patched(model, policy="always")
    block.__enter__()
    held = gate.held(lambda: generate(model, INPUTS, stopping_criteria=[AtToken(gate)]))
    with held as running, pytest.raises(relay_hf.RelayError, match=REFUSED):
        block.__exit__(None, None, None)
    assert torch.equal(running.result(), generate(stock, INPUTS))
    assert model.relay.last.relayed
    relay_hf.unpatch_model(model)


def test_a_call_that_has_failed_no_longer_stands_in_the_way():
    _, model = patched_pair()
    for error in (ValueError, KeyboardInterrupt):

        def fail(input_ids, scores, error=error):
            raise error

        with pytest.raises(error):
            generate(model, INPUTS, stopping_criteria=[fail])
    relay_hf.unpatch_model(model)
    assert not hasattr(model, "relay")


def test_a_model_that_is_copied_while_it_generates_may_be_unpatched():
    _, model = patched_pair()
    copies = []

    def take(input_ids, scores):
        copies.append(copy.deepcopy(model))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    tokens = generate(model, INPUTS, stopping_criteria=[take], max_new_tokens=2, min_new_tokens=2)
    twin = copies[0]
    assert torch.equal(generate(twin, INPUTS)[:, : tokens.shape[1]], tokens)
    assert twin.relay.last.relayed
    relay_hf.unpatch_model(twin)


def test_patching_while_another_thread_generates_leaves_its_call_to_stock():
    stock = tiny_model("llama")
    model, gate = copy.deepcopy(stock), Gate()
    with gate.held(lambda: generate(model, INPUTS, stopping_criteria=[AtToken(gate)])) as running:
        relay_hf.patch_model(model, policy="always")
        assert torch.equal(generate(model, INPUTS), generate(stock, INPUTS))
        assert model.relay.last.relayed
    assert torch.equal(running.result(), generate(stock, INPUTS))
    assert model.relay.stats().calls == 1


@pytest.fixture
def often():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_that_patch_one_model_patch_it_once(often):
    stock = tiny_model("llama")
    for _ in range(20):
        model, start = copy.deepcopy(stock), Barrier(4)
        before = snapshot(model)

        def patch(model=model, start=start):
            start.wait(timeout=60)
            return relay_hf.patch_model(model, policy="always").relay

        relays = together(*[patch] * 4)
        assert set(relays) == {model.relay}
        assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
        relay_hf.unpatch_model(model)
        assert snapshot(model) == before


def test_options_that_change_in_the_middle_of_a_call_are_for_the_calls_to_come():
    stock, model = patched_pair()
    gate = Gate()
    with gate.held(lambda: generate(model, INPUTS, stopping_criteria=[AtToken(gate)])) as running:
        relay_hf.patch_model(model, policy="off", max_store_bytes=0)
        assert torch.equal(generate(model, INPUTS), generate(stock, INPUTS))
        assert "policy 'off'" in model.relay.last.reason
    assert torch.equal(running.result(), generate(stock, INPUTS))
    assert model.relay.last.relayed
    assert model.relay.prefixes == ()
