"""Code that is known to act token by token, and is relayed: PyTorch's, adapters', and the model's own."""

import copy
import functools
import gc
import logging
import weakref

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import relay_hf
from relay_hf.model.attention_choice import ATTENTION_NAME
from relay_hf.model.upstream.attention import ATTENTION_FUNCTIONS
from tests.support.tiny_models import tiny_model

from . import steering
from .compare import assert_relayed, assert_untouched, beside_a_patched_copy, pair
from .steering import INPUTS, MLP, mlp_of, replace_forward

HERE = f"{__name__}."
STEERING = f"{steering.__name__}."


def parametrized(model):
    parametrizations.weight_norm(mlp_of(model).down_proj)
    parametrizations.spectral_norm(mlp_of(model).up_proj).eval()


def compiled_by_pytorch(model):
    mlp_of(model).forward = torch.compile(mlp_of(model).forward, backend="eager")
    model.model.layers[1].mlp = torch.compile(model.model.layers[1].mlp, backend="eager")
    model.model.norm.compile(backend="eager")


def weights_computed_by_hooks(model):
    prune.l1_unstructured(mlp_of(model).up_proj, "weight", amount=0.5)
    weight_norm(mlp_of(model).down_proj)
    nn.utils.spectral_norm(model.model.layers[1].mlp.up_proj).eval()


def modules_of_pytorch(model):
    model.model.layers[0].mlp = nn.Sequential(mlp_of(model), nn.LayerNorm(32), nn.Linear(32, 32)).eval()


def names_set_by_hand(model):
    mlp_of(model).forward = mlp_of(model).forward
    mlp_of(model).__dict__["note"] = "a setting"


def what_no_forward_runs(model):
    mlp_of(model).train = lambda mode=True: mlp_of(model)
    mlp_of(model).up_proj.extra_repr = lambda: "as a quantizer prints it"


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        parametrized,
        compiled_by_pytorch,
        weights_computed_by_hooks,
        modules_of_pytorch,
        names_set_by_hand,
        what_no_forward_runs,
    ],
    ids=lambda change: change.__name__,
)
def test_known_code_is_relayed(change):
    models = pair("llama")
    for model in models:
        torch.manual_seed(0)
        change(model)
    for _ in range(2):
        assert torch.equal(*(model.generate(**INPUTS, max_new_tokens=8) for model in models))
        assert models[1].relay.last.relayed, models[1].relay.last


def test_a_wrapper_of_all_attention_functions_may_pass_their_arguments_by_position(monkeypatch):
    """It wraps the one that relayed forwards use too, as kvpress does when it is imported after a model is patched."""
    models = pair("llama")
    ours = ATTENTION_FUNCTIONS[ATTENTION_NAME]

    def wrapper(module, query, key, value, attention_mask, dropout, scaling, **kwargs):
        return ours(module, query, key, value, attention_mask, dropout, scaling, **kwargs)

    monkeypatch.setitem(ATTENTION_FUNCTIONS, ATTENTION_NAME, wrapper)
    assert_relayed(models, INPUTS)


def test_weights_that_hooks_compute_are_never_stale():
    models = pair("llama")
    for model in models:
        prune.l1_unstructured(mlp_of(model).up_proj, "weight", amount=0.5)
    assert_relayed(models, INPUTS)
    for model in models:
        mlp_of(model).up_proj.weight_mask.fill_(1.0)
    assert_relayed(models, INPUTS)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2.0 * weight


def test_a_parametrization_of_the_users_is_relayed_where_the_user_vouches_for_it():
    models = pair("llama")
    for model in models:
        parametrize.register_parametrization(mlp_of(model).up_proj, "weight", Doubled()).eval()
    assert_untouched(models, INPUTS, f"Doubled (module '{MLP}.up_proj.parametrizations.weight.0') runs {HERE}Doubled")
    relay_hf.patch_model(models[1], trust=["*.parametrizations.*"])
    assert_relayed(models, INPUTS)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(torch, "load"), (torch, "manual_seed"), (transformers.modeling_utils, "check_torch_load_is_safe")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_function_that_no_forward_uses_may_be_replaced(owner, name, monkeypatch):
    models = pair("llama")
    monkeypatch.setattr(owner, name, functools.partial(lambda function, *args: function(*args), getattr(owner, name)))
    assert_relayed(models, INPUTS)


def test_spectral_norm_of_the_newer_kind_in_training_mode_is_untouched():
    models = pair("llama")
    for model in models:
        torch.manual_seed(0)
        parametrizations.spectral_norm(mlp_of(model).up_proj)
        mlp_of(model).up_proj.parametrizations.train()
    assert_untouched(models, INPUTS, "_SpectralNorm (module '")


def test_spectral_norm_in_training_mode_is_untouched():
    """Each forward changes what the next one computes."""
    models = pair("llama")
    for model in models:
        torch.manual_seed(0)
        nn.utils.spectral_norm(model.model.layers[1].mlp.up_proj).train()
    assert_untouched(models, INPUTS, "a forward hook on Linear (torch.nn.utils.spectral_norm.SpectralNorm.__call__)")


class OwnLayer(LlamaDecoderLayer):
    """Of the file that the model's own class is written in."""

    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs)


class OwnModel(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.__class__ = OwnLayer
            layer.mlp.act_fn = ACT2FN["silu"]
            layer.scale = identity


def identity(hidden):
    return hidden


def test_a_model_of_the_users_own_is_relayed_with_the_layers_of_its_file_and_not_with_others():
    torch.manual_seed(0)
    models = beside_a_patched_copy(OwnModel(tiny_model("llama").config).eval())
    assert_relayed(models, INPUTS)
    # The same file, and no class: somebody has put it there.
    for model in models:
        replace_forward(model)
    assert_untouched(models, INPUTS, f"LlamaMLP.forward (module {MLP!r}) runs {STEERING}replace_forward.<lambda>")


def replaced_in_a_file_of_models(query, key, *args, **kwargs):
    """Of this file, like the model's class."""
    return query, key


def test_a_model_of_the_users_own_does_not_make_its_file_known_in_the_place_of_others(monkeypatch):
    torch.manual_seed(0)
    models = beside_a_patched_copy(OwnModel(tiny_model("llama").config).eval())
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", replaced_in_a_file_of_models)
    assert_untouched(models, INPUTS, f"apply_rotary_pos_emb was replaced by {HERE}replaced_in_a_file_of_models")


LAYERS = """
from torch import nn

class HubNorm(nn.LayerNorm):
    def forward(self, hidden):
        return super().forward(hidden)
"""
MODELING = """
from transformers import LlamaForCausalLM
from .layers_of_hub import HubNorm

class HubModel(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.norm = HubNorm(config.hidden_size, bias=False)
        self.post_init()
"""


def test_code_from_the_hub_is_relayed_in_all_files_of_its_repository(tmp_path, monkeypatch):
    model = tiny_model("llama")
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_of_hub.HubModel"}
    model.save_pretrained(tmp_path)
    (tmp_path / "layers_of_hub.py").write_text(LAYERS)
    (tmp_path / "modeling_of_hub.py").write_text(MODELING)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert type(stock.model.norm).__name__ == "HubNorm"
    assert_relayed((stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")), INPUTS)


class TellingLogger(logging.Logger):
    """As tracing libraries put one in."""

    def warning_once(self, *args, **kwargs):
        return self.warning(*args, **kwargs)


def test_loggers_are_no_code_of_a_model(monkeypatch):
    models = pair("llama")
    handle = logging.Logger.callHandlers
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda self, record: handle(self, record))
    monkeypatch.setattr(modeling_llama, "logger", TellingLogger("of a test"))
    assert_relayed(models, INPUTS)


AROUND = {
    "reset_parameters": (nn.Linear, lambda self: None),
    "_load_from_state_dict": (nn.Linear, lambda self, *args: None),
    "_init_weights": (modeling_llama.LlamaPreTrainedModel, lambda self, module: None),
    "from_pretrained": (LlamaForCausalLM, classmethod(lambda cls, *args, **kwargs: None)),
}


@pytest.mark.parametrize("name", AROUND)
def test_a_method_that_builds_or_loads_modules_may_be_replaced(name, monkeypatch):
    models = pair("llama")
    owner, method = AROUND[name]
    monkeypatch.setattr(owner, name, method, raising=False)
    assert_relayed(models, INPUTS)


def test_what_no_forward_calls_may_hang_on_a_module():
    models = pair("llama")
    for model in models:
        mlp_of(model).owner = weakref.ref(model)
        model.loss = nn.CrossEntropyLoss().eval()
    assert_relayed(models, INPUTS)


def test_a_method_that_was_replaced_and_put_back_is_known(monkeypatch):
    models = pair("llama")
    add = torch.Tensor.__add__
    monkeypatch.setattr(torch.Tensor, "__add__", lambda self, other: add(self, other))
    torch.Tensor.__add__ = add
    assert_relayed(models, INPUTS)


@pytest.mark.parametrize(
    "activation",
    [torch.tanh, torch.Tensor.tanh, functools.partial(nn.functional.gelu)],
    ids=["torch", "Tensor", "partial"],
)
def test_an_activation_without_python_code_is_relayed(activation):
    models = pair("llama")
    for model in models:
        del mlp_of(model).act_fn
        mlp_of(model).act_fn = activation
    assert_relayed(models, INPUTS)


def test_classes_and_models_of_the_users_are_free_after_use():
    class Own(LlamaForCausalLM):
        def tie_weights(self, *args, **kwargs):
            return super().tie_weights(*args, **kwargs)

    model = relay_hf.patch_model(Own(tiny_model("llama").config).eval(), policy="always")
    model.generate(**INPUTS, max_new_tokens=2)
    assert model.relay.last.relayed, model.relay.last
    Own.last = model
    held = weakref.ref(model)
    del model, Own
    gc.collect()
    assert held() is None
