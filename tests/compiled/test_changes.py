"""What changes between two calls, or within one: no compiled step computes with what was."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import relay_hf
from relay_hf.compiled import steps
from relay_hf.compiled.reordered import ReorderedWeights
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))


def patch(model):
    return relay_hf.patch_model(model, policy="always", compile=True)


def weight(model):
    return model.model.layers[1].mlp.up_proj.weight


def added(model):
    with torch.no_grad():
        weight(model).add_(0.5)


def through_data(model):
    weight(model).data.mul_(-1)


def replaced(model):
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(-weight(model).detach())


def moved(model):
    weight(model).data = -weight(model).data


def loaded(model):
    model.load_state_dict({name: -value for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [added, through_data, replaced, moved, loaded], ids=lambda change: change.__name__)
def test_a_changed_weight_is_noticed_and_nothing_compiled_anew(traced, change):
    model = tiny_model("llama")
    stock = copy.deepcopy(model)
    patch(model)
    for each in (model, stock):
        generate(each, INPUTS)
        change(each)
    assert torch.equal(generate(model, INPUTS), generate(stock, INPUTS))
    assert (model.relay.last.compiled_steps, traced()) == (11, 1)
    held = sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear))
    assert model.relay.last.compile_bytes == held


def tokens_with_a_change(model, change):
    """What a model generates, if `change` is applied to it by a processor in the middle of the call."""

    def process(ids, scores):
        if ids.shape[1] == 31:
            change(model)
        return scores

    return generate(model, INPUTS, logits_processor=[process])


def set_epsilon(model):
    model.model.norm.variance_epsilon = 0.5


@pytest.mark.parametrize(
    ("change", "compiled", "reason"),
    [(through_data, 11, ""), (set_epsilon, 4, "the model was changed within the call")],
)
def test_what_the_callers_code_changes_between_two_steps(change, compiled, reason, traced):
    """A changed weight is reordered anew; after another change the call goes on uncompiled."""
    model = tiny_model("llama")
    stock = copy.deepcopy(model)
    patch(model)
    assert torch.equal(tokens_with_a_change(model, change), tokens_with_a_change(stock, change))
    assert (model.relay.last.compiled_steps, model.relay.last.compile_reason) == (compiled, reason)


def test_states_of_a_model_have_steps_of_their_own_and_not_too_many(traced, monkeypatch):
    monkeypatch.setattr(steps, "_MOST", 3)
    model = tiny_model("llama")
    stock = copy.deepcopy(model)
    patch(model)
    for index, epsilon in enumerate((1.0, 2.0, 1.0, 2.0, 3.0, 4.0)):
        for each in (model, stock):
            each.model.norm.variance_epsilon = epsilon
        assert torch.equal(generate(model, INPUTS), generate(stock, INPUTS))
        if index == 3:
            assert traced() == 2
    assert traced() == 3
    assert model.relay.last.compile_reason.startswith("the model was compiled 3 times")
    model.relay.clear()
    generate(model, INPUTS)
    assert (model.relay.last.compiled_steps, traced()) == (11, 4)


def test_nothing_is_left_behind(traced):
    model = patch(tiny_model("llama"))
    before = {*vars(model)}
    generate(model, INPUTS)
    assert {*vars(model)} == before
    (kept,) = [step for _, step in model.relay._hooks.compiled._kept]
    copies = [weakref.ref(each.copy) for each in model.relay._hooks.compiled.weights._copies.values()]
    step = weakref.ref(kept._step)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (other.relay._hooks.compiled._kept, other.relay._hooks.compiled.weights.nbytes) == ([], 0)
        assert torch.equal(generate(other, INPUTS), generate(model, INPUTS))
        assert other.relay.last.compiled_steps == 11
    del kept, other
    relay_hf.unpatch_model(model)
    gc.collect()
    assert (step(), [copy for copy in copies if copy() is not None]) == (None, [])


def test_other_options_keep_what_is_compiled_and_compile_false_drops_it(traced):
    model = patch(tiny_model("llama"))
    generate(model, INPUTS)
    relay_hf.patch_model(model, min_prefix_length=8, compile="auto")
    generate(model, INPUTS)
    assert (model.relay.last.compiled_steps, traced()) == (11, 1)
    relay_hf.patch_model(model, compile=False)
    generate(model, INPUTS)
    assert (model.relay.last.compiled_steps, model.relay.last.compile_reason) == (0, "")
    assert model.relay._hooks.compiled.weights.nbytes == 0


# -- the copies themselves --------------------------------------------------------------------------------------------


def test_copies_take_no_more_than_half_of_the_free_memory():
    copies, one, two = ReorderedWeights(), nn.Parameter(torch.randn(8, 16)), nn.Parameter(torch.randn(8, 16))
    copies._most = one.nbytes
    assert copies.of(one, False).is_mkldnn
    assert copies.of(two, False) is two
    assert copies.nbytes == one.nbytes


def test_a_weight_that_is_gone_is_dropped_and_its_address_serves_no_other():
    copies, weight = ReorderedWeights(), nn.Parameter(torch.randn(8, 16))
    key = id(weight)
    copies.of(weight, False)
    other = nn.Parameter(torch.randn(8, 16))
    same = (other._version, other.data_ptr(), False)  # as if it had been made where the first one was
    copies._copies[id(other)] = copies._copies.pop(key)._replace(marks=same)
    x = torch.randn(3, 16)
    ours = torch.ops.mkldnn._linear_pointwise(x, copies.of(other, False), None, "none", [], "")
    torch.testing.assert_close(ours, x @ other.detach().T)
    del weight, other
    copies.check()
    assert copies.nbytes == 0
