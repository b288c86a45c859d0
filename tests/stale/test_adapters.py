"""A kept prefix outlives no change of an adapter."""

import copy
import shutil

import peft
import pytest
import torch

import relay_hf
from relay_hf.model.fingerprint.fingerprint import ModelFingerprint
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .common import blind, logits, mutate, reusing
from .mutations import INPUTS

# peft itself uses a name that Transformers 5.23 deprecates; that is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

TARGETS = ["q_proj", "v_proj"]


def lora(targets=TARGETS) -> peft.LoraConfig:
    return peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)


@pytest.fixture
def stock():
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model("llama"), lora())
    model.add_adapter("second", lora())
    return model.eval()


def layers(model) -> list:
    return [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]


def rescale(model):
    for module in layers(model):
        module.scaling["default"] *= 2


def set_scale(model):
    for module in layers(model):
        module.set_scale("default", 0.5)


def combine(model):
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both", combination_type="linear")
    model.set_adapter("both")
    model.eval()


def train(model):
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            parameter.data.add_(0.1)


def reload(model):
    """The adapter's weights from a file, into the adapter that is there."""
    state = peft.get_peft_model_state_dict(model)
    peft.set_peft_model_state_dict(model, {name: torch.randn_like(value) for name, value in state.items()})


def renew(model):
    """Under the same name, from a new configuration."""
    model.set_adapter("second")
    model.delete_adapter("default")
    model.add_adapter("default", lora())
    model.set_adapter("default")
    model.eval()


CHANGES = {
    "switched": lambda model: model.set_adapter("second"),
    "scaled": rescale,
    "scaled, by peft": set_scale,
    "combined": combine,
    "trained": train,
    "loaded into the same": reload,
    "deleted and made anew": renew,
    "merged": lambda model: model.merge_adapter(),
    "merged and switched": lambda model: (model.merge_adapter(["second"]), None),
    "disabled": lambda model: model.base_model.disable_adapter_layers(),
    "unloaded": lambda model: model.unload(),
    "merged and unloaded": lambda model: model.merge_and_unload(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_adapter_is_noticed(stock, change, monkeypatch):
    ours, unguarded = reusing(stock), reusing(stock)
    for model in (stock, ours, unguarded):
        mutate(model, CHANGES[change])
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.relayed, ours.relay.last
    assert ours.relay.last.prefix_tokens_reused == 0
    right = logits(ours)
    with monkeypatch.context() as context:
        blind(context)
        wrong = logits(unguarded)
        assert unguarded.relay.last.prefix_tokens_reused == 30
    assert not torch.equal(wrong, right)
    relay_hf.unpatch_model(ours)
    assert not hasattr(ours, "relay")


def test_an_adapter_loaded_from_a_folder_is_noticed(stock, tmp_path):
    other = copy.deepcopy(stock)
    train(other)
    other.save_pretrained(tmp_path)
    ours = reusing(stock)
    for model in (stock, ours):
        model.load_adapter(tmp_path, "third")
        model.set_adapter("third")
        model.eval()
    shutil.rmtree(tmp_path)
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.relayed
    assert ours.relay.last.prefix_tokens_reused == 0


def test_disabled_for_a_while(stock):
    """The model without its adapter, as reference of a reward, and with it, by turns."""
    ours = reusing(stock)
    for _ in range(2):
        with stock.disable_adapter():
            without = generate(stock, INPUTS)
        assert not torch.equal(without, generate(stock, INPUTS))
        with ours.disable_adapter():
            assert torch.equal(generate(ours, INPUTS), without)
            assert ours.relay.last.relayed
            assert ours.relay.last.prefix_tokens_reused == 0
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert ours.relay.last.prefix_tokens_reused == 0


def test_transformers_own_adapters(stock, monkeypatch):
    """`model.add_adapter`, of a model that peft does not wrap."""
    # Transformers 5.24 asks for peft 0.22, and 0.21.2 is the newest there is.
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)
    plain = tiny_model("llama")
    ours = reusing(plain)
    for model in (plain, ours):
        mutate(model, lambda model: model.add_adapter(lora(), "one"))
        model.eval()
    for reused in (0, 30):
        assert torch.equal(generate(ours, INPUTS), generate(plain, INPUTS))
        assert ours.relay.last.prefix_tokens_reused == reused
    for model in (plain, ours):
        model.disable_adapters()
    assert torch.equal(generate(ours, INPUTS), generate(plain, INPUTS))
    assert ours.relay.last.relayed
    assert ours.relay.last.prefix_tokens_reused == 0


def test_any_merge_of_any_lora_layer_is_noticed_by_the_weights_alone():
    """100 merges, 100 noticed, without what the adapters say of themselves."""
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
    lora = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama", num_hidden_layers=4), lora)
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    modules = list(model.modules())
    generator = torch.Generator().manual_seed(0)
    noticed = 0
    for _ in range(100):
        before = ModelFingerprint(modules)
        layer = layers[int(torch.randint(len(layers), (1,), generator=generator))]
        layer.merge()
        noticed += before._samples != ModelFingerprint(modules)._samples
        layer.unmerge()
    assert noticed == 100


def test_lora_on_the_embedding():
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    stock = peft.get_peft_model(tiny_model("llama"), lora).eval()
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    for reused in (0, 30):
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert ours.relay.last.relayed, ours.relay.last
        assert ours.relay.last.prefix_tokens_reused == reused


def test_prompt_learning_is_untouched():
    torch.manual_seed(0)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(tiny_model("llama"), config).eval()
    expected = generate(model, INPUTS)
    relay_hf.patch_model(model, policy="always")
    assert torch.equal(generate(model, INPUTS), expected)
    assert "prepare_inputs_for_generation was replaced" in model.relay.last.reason
