"""The user's attention implementation, copied, pickled and changed while a relayed forward names ours."""

import copy
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .test_shared_config import stop_in_forward
from .threads import Gate

INPUTS = prompts(20, (3, 7, 1, 5))
CHANGED = "the attention implementation was changed while the model ran"


def in_forward(model, number=2):
    """Within it a call of another thread stands in the middle of a forward."""
    gate = Gate()
    undo = stop_in_forward(model, gate, number)
    return gate.held(lambda: generate(model, INPUTS)), undo


def between_layers(monkeypatch, model, forward):
    """The same, behind the first layer's attention and before the second's."""
    gate, last, left = Gate(), model.model.layers[-1], [forward]
    kind = type(last)
    call = kind.__call__  # another forward would be another model, for what is kept

    def wait(self, *args, **kwargs):
        if self is last:
            left[0] -= 1
            if left[0] == 0:
                gate.wait()
        return call(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", wait)
    return gate.held(lambda: generate(model, INPUTS))


@pytest.mark.parametrize("stays_patched", [True, False], ids=["patched", "unpatched"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_a_copy_taken_in_the_middle_of_a_forward_is_right(family, stays_patched):
    stock = tiny_model(family)
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"])
    expected, choice = generate(stock, INPUTS), stock.config._attn_implementation
    held, undo = in_forward(model)
    with held as running:
        assert model.config._attn_implementation == "relay_attention"
        twin = copy.deepcopy(model)
    undo()
    assert torch.equal(running.result(), expected)
    for module in twin.modules():
        vars(module).pop("forward", None)  # what waits at the gate
    assert (twin.config._attn_implementation, type(twin.config._attn_implementation)) == (choice, str)
    if not stays_patched:
        relay_hf.unpatch_model(twin)
    assert torch.equal(generate(twin, INPUTS), expected)
    with torch.no_grad():
        assert torch.equal(twin(INPUTS["input_ids"]).logits, stock(INPUTS["input_ids"]).logits)
    if stays_patched:
        assert twin.relay.last.relayed
        relay_hf.unpatch_model(twin)
    assert twin.config._attn_implementation == choice


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config)), copy.copy],
    ids=["deepcopy", "pickle", "shallow"],
)
def test_a_model_made_from_a_config_that_is_copied_meanwhile_is_right(duplicate, tmp_path):
    stock = tiny_model("gpt_oss")
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"])
    held, undo = in_forward(model)
    with held:
        config = duplicate(model.config)
        assert pickle.dumps(model.config).find(b"relay") == -1
        model.config.save_pretrained(tmp_path)
    undo()
    assert "relay" not in (tmp_path / "config.json").read_text()
    twin = AutoModelForCausalLM.from_config(config).eval()
    twin.load_state_dict(stock.state_dict())
    assert torch.equal(generate(twin, INPUTS), generate(stock, INPUTS))
    relay_hf.patch_model(twin, policy="always", trust=["*"])
    assert torch.equal(generate(twin, INPUTS), generate(stock, INPUTS))
    assert twin.relay.last.relayed, twin.relay.last


def test_a_choice_made_in_the_middle_of_a_forward_stays():
    stock = tiny_model("llama")
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"])
    expected = generate(stock, INPUTS)
    held, undo = in_forward(model)
    with held as running:
        model.set_attn_implementation("eager")
    undo()
    assert torch.equal(running.result(), expected)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(generate(model, INPUTS), expected)
    assert model.relay.last.relayed
    relay_hf.unpatch_model(model)
    assert model.config._attn_implementation == "eager"


def test_a_choice_made_between_two_layers_of_the_prefill_leaves_the_call_to_stock_and_bars_nothing(monkeypatch):
    stock = tiny_model("llama")
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"])
    expected = generate(stock, INPUTS)
    for choice in ("eager", "sdpa", "eager"):  # twice the same failure would be the model's
        model.relay.clear()
        with monkeypatch.context() as patch, between_layers(patch, model, 1) as running:
            model.set_attn_implementation(choice)
        assert torch.equal(running.result(), expected)
        assert (model.relay.last.relayed, model.relay.last.reason) == (False, CHANGED)
        assert model.config._attn_implementation == choice
        assert torch.equal(generate(model, INPUTS), expected)
        assert model.relay.last.relayed, model.relay.last


def test_a_choice_made_between_two_layers_of_a_decode_step_is_said(monkeypatch):
    stock = tiny_model("llama")
    model = relay_hf.patch_model(copy.deepcopy(stock), policy="always", trust=["*"])
    with monkeypatch.context() as patch, between_layers(patch, model, 5) as running:
        model.set_attn_implementation("eager")
    with pytest.raises(relay_hf.RelayError, match=CHANGED):
        running.result()
    assert model.config._attn_implementation == "eager"
    assert torch.equal(generate(model, INPUTS), generate(stock, INPUTS))
    assert model.relay.last.relayed
