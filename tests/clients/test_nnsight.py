"""nnsight: a wrapper that reads and changes what is inside a model, while it runs."""

import copy

import nnsight
import pytest
import torch

import relay_hf
from tests.support.tiny_models import tiny_model

from . import spelled

NEW = 6


@pytest.fixture
def tokenizer():
    return spelled.tokenizer()


@pytest.fixture
def stock(tokenizer):
    return tiny_model("llama", vocab_size=len(tokenizer))


def answers(model, tokenizer):
    inputs = tokenizer(spelled.TEXTS, padding=True, return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False)


def steered(model, tokenizer):
    """What is generated while the mean of all tokens is added to a layer: in the prefill, and so only there."""
    wrapped = nnsight.TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    with wrapped.generate(spelled.TEXTS, max_new_tokens=NEW, do_sample=False) as tracer:
        hidden = wrapped.model.layers[0].mlp.output
        wrapped.model.layers[0].mlp.output = hidden + 2 * hidden.mean(dim=1, keepdim=True)
        found = tracer.result.save()
    return found


def test_a_model_that_it_has_wrapped_is_untouched_and_one_that_it_has_not_is_relayed(stock, tokenizer):
    ours, other = (relay_hf.patch_model(copy.deepcopy(stock), policy="always") for _ in range(2))
    plain = answers(stock, tokenizer)
    expected = steered(stock, tokenizer)
    assert not torch.equal(expected[:, -NEW:], plain[:, -NEW:])
    assert torch.equal(steered(ours, tokenizer), expected)
    # The wrapper stays on the model's modules.
    assert torch.equal(answers(ours, tokenizer), plain)
    assert ours.relay.stats().relayed_calls == 0
    assert " runs nnsight.intervention." in ours.relay.last.reason
    assert torch.equal(answers(other, tokenizer), plain)
    assert other.relay.last.relayed, other.relay.last


def test_a_traced_forward_is_stocks(stock, tokenizer):
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    inputs = tokenizer(spelled.TEXTS, padding=True, return_tensors="pt")
    logits = []
    for model in (stock, ours):
        wrapped = nnsight.NNsight(model)
        with wrapped.trace(**inputs):
            wrapped.model.layers[1].output[:] = 0.5 * wrapped.model.layers[1].output
            found = wrapped.output.logits.save()
        logits.append(found)
    assert torch.equal(*logits)
    with torch.no_grad():
        assert not torch.allclose(logits[0], stock(**inputs).logits)
