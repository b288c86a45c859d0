"""Two models that share one config object, of which one is patched, and forwards of both at the same time."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.model_snapshot import snapshot
from tests.support.tiny_models import tiny_model

from .threads import Gate, together

INPUTS = prompts(20, (3, 7, 1, 5))


def twins(family):
    """Two models of the same weights and the same config object."""
    one = tiny_model(family)
    two = AutoModelForCausalLM.from_config(one.config).eval()
    two.load_state_dict(one.state_dict())
    assert one.config is two.config
    return one, two


def stop_in_forward(model, gate, number):
    """Let the model's n-th forward wait at a gate, in the middle of it."""
    last = [module for name, module in model.named_modules() if name.endswith("norm")][-1]
    forward, left = last.forward, [number]

    def wait(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            gate.wait()
        return forward(*args, **kwargs)

    last.forward = wait
    return lambda: delattr(last, "forward")


@pytest.mark.parametrize("number", [1, 2, 5], ids=["prefix", "rows", "decode"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_the_other_model_is_stock_while_a_forward_of_the_patched_one_is_under_way(family, number):
    one, two = twins(family)
    expected, before, choice = generate(one, INPUTS), snapshot(two), one.config._attn_implementation
    relay_hf.patch_model(one, policy="always", trust=["*"])
    gate = Gate()
    undo = stop_in_forward(one, gate, number)
    with gate.held(lambda: generate(one, INPUTS)) as running:
        assert one.config._attn_implementation == "relay_attention"
        assert torch.equal(generate(two, INPUTS), expected)
        with torch.no_grad():
            assert torch.equal(two(INPUTS["input_ids"]).logits.argmax(-1)[:, -1:], first_token(two))
        with pytest.raises(relay_hf.RelayError, match="can't be unpatched while it generates"):
            relay_hf.unpatch_model(one)
        relay_hf.unpatch_model(two)  # never patched: nothing to do
    assert torch.equal(running.result(), expected)
    assert one.relay.last.relayed
    undo()
    relay_hf.unpatch_model(one)
    assert one.config._attn_implementation == choice
    assert snapshot(two) == before
    for model in (one, two):
        assert torch.equal(generate(model, INPUTS), expected)


def first_token(model):
    """Of each row, without its mask."""
    tokens = model.generate(INPUTS["input_ids"], attention_mask=torch.ones_like(INPUTS["input_ids"]), max_new_tokens=1)
    return tokens[:, -1:]


def test_both_patched_are_each_their_own():
    one, two = twins("llama")
    with torch.no_grad():
        two.lm_head.weight.neg_()
    expected = [generate(model, INPUTS) for model in (one, two)]
    assert not torch.equal(*expected)
    for model in (one, two):
        relay_hf.patch_model(model, policy="always")
    found = together(*[lambda model=model: [generate(model, INPUTS) for _ in range(6)] for model in (one, two)])
    for model, tokens, want in zip((one, two), found, expected, strict=True):
        assert all(torch.equal(each, want) for each in tokens)
        assert model.relay.stats().relayed_calls == 6
    relay_hf.unpatch_model(one)
    assert torch.equal(generate(two, INPUTS), expected[1])
    assert two.relay.last.relayed
