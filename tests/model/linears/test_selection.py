"""The layers while a forward runs and after it: nothing stays, and other threads see the layers as they were."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import LogitsProcessor

import relay_hf
from relay_hf.model.linears import layers, onednn
from relay_hf.testing import prompts
from tests.concurrency.threads import Gate
from tests.support.generating import generate
from tests.support.model_snapshot import differences, snapshot
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))


def kinds(model):
    return [type(module) for module in model.modules()]


def linears(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def in_forward(model, monkeypatch, product_number):
    """Within it a call of another thread stands in the middle of a forward: behind its n-th product by oneDNN."""
    gate, left, product = Gate(), [product_number], onednn.linear

    def wait(*operands):
        left[0] -= 1
        if left[0] == 0:
            gate.wait()
        return product(*operands)

    monkeypatch.setattr(onednn, "linear", wait)
    return gate.held(lambda: generate(model, INPUTS))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nothing_is_left_on_the_model(family):
    model = tiny_model(family)
    before, classes = snapshot(model), kinds(model)
    relay_hf.patch_model(model, policy="always", linears=True)
    generate(model, INPUTS)
    assert model.relay.last.linears == "onednn"
    assert kinds(model) == classes
    relay_hf.unpatch_model(model)
    assert differences(before, snapshot(model)) == {}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("number", [1, 20, 60])
def test_after_an_error_in_a_forward(error, number, monkeypatch):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", linears=True, backend="torch")
    classes, expected, left, product = kinds(model), generate(model, INPUTS), [number], onednn.linear

    def fail(*operands):
        left[0] -= 1
        if left[0] == 0:
            raise error("in a product")
        return product(*operands)

    model.relay.clear()
    with monkeypatch.context() as patch:
        patch.setattr(onednn, "linear", fail)
        if error is KeyboardInterrupt or number == 60:
            with pytest.raises(error, match="in a product"):
                generate(model, INPUTS)
        else:
            generate(model, INPUTS)  # by stock
            assert not model.relay.last.relayed
    assert kinds(model) == classes
    assert layers.least_work.get() == ()
    model.relay.clear()
    assert torch.equal(generate(model, INPUTS), expected)
    assert (model.relay.last.relayed, model.relay.last.linears) == (True, "onednn")


def test_another_threads_forward_is_stocks(monkeypatch):
    stock = tiny_model("llama")
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always", linears=True)
    with in_forward(model, monkeypatch, 40):
        assert layers.SwitchedLinear in kinds(model)
        before = len(calls := [])
        monkeypatch.setattr(onednn, "linear", lambda *operands: calls.append(operands))
        with torch.no_grad():
            assert torch.equal(model(**INPUTS).logits, stock(**INPUTS).logits), "bit by bit"
        assert len(calls) == before
        monkeypatch.undo()
    assert layers.SwitchedLinear not in kinds(model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_copies_and_pickles_that_are_made_meanwhile_are_plain(family, monkeypatch):
    model = relay_hf.patch_model(tiny_model(family), policy="always", linears=True)
    classes, expected = kinds(model), generate(model, INPUTS)
    with in_forward(model, monkeypatch, 40):
        assert kinds(model) != classes
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        shallow = [copy.copy(each) for each in model.modules() if type(each) in layers.SWITCHED.values()]
        assert "Switched" not in repr(model)
        monkeypatch.undo()
    assert {type(each) for each in shallow} <= {*layers.SWITCHED}
    for twin in twins:
        assert kinds(twin) == classes
        assert torch.equal(generate(twin, INPUTS), expected)
        assert twin.relay.last.linears == "onednn"


def test_what_is_kept_outlives_another_threads_forward(monkeypatch):
    """A call that compares the model with a prefix's fingerprint meanwhile finds it unchanged, and its code known."""
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", linears=True)
    expected = generate(model, INPUTS)
    held = in_forward(model, monkeypatch, 15)
    with held as running:
        monkeypatch.undo()
        assert layers.SwitchedLinear in kinds(model)
        assert torch.equal(generate(model, INPUTS), expected)
        assert model.relay.last.prefix_tokens_reused == 20
        assert model.relay.last.linears == "onednn"
        assert layers.SwitchedLinear in kinds(model), "the other forward still runs"
    assert torch.equal(running.result(), expected)
    assert layers.SwitchedLinear not in kinds(model)


def test_a_class_that_others_give_a_layer_meanwhile_stays():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", linears=True, trust=["*"])
    other = type("Other", (nn.Linear,), {})

    class Changing(LogitsProcessor):
        def __call__(self, input_ids, scores):
            linears(model)[0].__class__ = other
            return scores

    generate(model, INPUTS, logits_processor=[Changing()])
    assert type(linears(model)[0]) is other
    assert {type(each) for each in linears(model)} == {other, nn.Linear}


def test_hooks_of_a_layer_run(monkeypatch):
    """A hook that a user has put on a linear layer, and vouches for, sees each product."""
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", linears=True, trust=["*"])
    seen = []
    linears(model)[0].register_forward_hook(lambda module, given, output: seen.append(output.shape))
    generate(model, INPUTS)
    assert (model.relay.last.relayed, model.relay.last.linears) == (True, "onednn")
    assert len(seen) == 2 + 11  # the prefix, the rows, and eleven steps


def test_operands_that_are_not_plain_are_left_to_the_layer(monkeypatch):
    """As another library's tensors may be, or a bias in half precision, for which the layer raises its own error."""

    class Other(torch.Tensor):
        pass

    layer, x, computed = layers.SwitchedLinear(6, 4), torch.ones(2, 6), []
    monkeypatch.setattr(onednn, "linear", lambda *operands: computed.append(operands))
    held = layers.least_work.set(((None, 0),))
    try:
        layer._parameters["bias"] = layer.bias.detach().as_subclass(Other)
        assert type(layer(x)) is Other
        layer._parameters["bias"] = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        with pytest.raises(RuntimeError):
            layer(x)
        assert computed == []
        layer._parameters["bias"] = None
        layer(x.as_subclass(Other))
        assert computed == []
        layer(x)
        assert len(computed) == 1
    finally:
        layers.least_work.reset(held)
