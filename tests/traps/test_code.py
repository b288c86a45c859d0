"""Code in a model that is not known to act token by token: a user's own forwards, classes, wrappers and functions."""

import copy
import functools
import weakref

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm
from transformers import AutoModelForCausalLM, GenerationMixin, LlamaForCausalLM
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicLayer
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

import relay_hf
from relay_hf.generation import eligible_code
from relay_hf.model.attention_choice import ATTENTION_NAME
from relay_hf.model.upstream.attention import ATTENTION_FUNCTIONS
from relay_hf.testing import prompts
from tests.support.tiny_models import tiny_model

from .compare import assert_relayed, assert_untouched, assert_wrong, beside_a_patched_copy, pair

INPUTS = prompts(20, (3, 7, 1, 5))
MLP = "model.layers.0.mlp"
HERE = f"{__name__}."


def steered(hidden):
    """Moved by the mean of all tokens that go through at once."""
    return hidden + 2.0 * hidden.mean(dim=1, keepdim=True)


class Steered(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return steered(self.inner(hidden))


class SteeredMLP(LlamaMLP):
    def forward(self, hidden):
        return steered(super().forward(hidden))


class SteeringHook(ModelHook):
    def post_forward(self, module, output):
        return steered(output)


class SteeringWeight(nn.Parameter):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        found = super().__torch_function__(function, types, args, kwargs or {})
        return steered(found) if function is nn.functional.linear else found


class Callable:
    def __init__(self, function):
        self.function = function

    def __call__(self, hidden):
        return steered(self.function(hidden))


def mlp_of(model):
    return model.get_submodule(MLP)


def replaced_forward(model):
    forward = mlp_of(model).forward
    mlp_of(model).forward = lambda hidden: steered(forward(hidden))


def replaced_forward_that_looks_like_the_old_one(model):
    forward = mlp_of(model).forward

    @functools.wraps(forward)
    def other(hidden):
        return steered(forward(hidden))

    mlp_of(model).forward = other


def partial_forward(model):
    def other(inner, hidden):
        return steered(LlamaMLP.forward(inner, hidden))

    mlp_of(model).forward = functools.partial(other, mlp_of(model))


def callable_object(model):
    mlp_of(model).forward = Callable(mlp_of(model).forward)


def behind_a_decorator_of_pytorchs(model):
    forward = mlp_of(model).forward
    mlp_of(model).forward = torch.no_grad()(lambda hidden: steered(forward(hidden)))


def compiled(model):
    forward = mlp_of(model).forward
    mlp_of(model).forward = torch.compile(lambda hidden: steered(forward(hidden)), backend="eager")


def what_calls_the_forward(model):
    called = mlp_of(model)._call_impl
    mlp_of(model)._call_impl = lambda hidden: steered(called(hidden))


def wrapper_module(model):
    model.model.layers[0].mlp = Steered(mlp_of(model))


def module_in_the_place_of_an_activation(model):
    mlp_of(model).act_fn = Steered(mlp_of(model).act_fn)


def another_class(model):
    mlp_of(model).__class__ = SteeredMLP


def hook_of_accelerates_kind(model):
    add_hook_to_module(mlp_of(model), SteeringHook())


def script(model):
    class Scripted(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + 2.0 * hidden.mean(dim=1, keepdim=True)

    model.model.layers[0].mlp = nn.Sequential(mlp_of(model), torch.jit.script(Scripted())).eval()


def weight_of_another_class(model):
    mlp_of(model).down_proj.weight = SteeringWeight(mlp_of(model).down_proj.weight.data)


def bound_method_of_a_hidden_container(model):
    inner = nn.Sequential(mlp_of(model), Steered(nn.Identity()))
    mlp_of(model).forward = copy.deepcopy(inner).forward


def bound_method_of_a_changed_copy(model):
    shadow = copy.deepcopy(mlp_of(model))
    shadow.act_fn = Steered(shadow.act_fn)
    mlp_of(model).forward = shadow.forward


class SteeringFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden):
        return steered(hidden)


def autograd_function(model):
    mlp_of(model).forward = SteeringFunction.apply


UNKNOWN = {
    replaced_forward: (MLP, "LlamaMLP.forward", f"{HERE}replaced_forward.<lambda>"),
    replaced_forward_that_looks_like_the_old_one: (MLP, "LlamaMLP.forward", ".other"),
    partial_forward: (MLP, "LlamaMLP.forward", f"{HERE}partial_forward.other"),
    callable_object: (MLP, "LlamaMLP.forward", f"{HERE}Callable.__call__"),
    behind_a_decorator_of_pytorchs: (MLP, "LlamaMLP.forward", ".<lambda>"),
    compiled: (MLP, "LlamaMLP.forward", f"{HERE}compiled.<lambda>"),
    what_calls_the_forward: (MLP, "LlamaMLP._call_impl", f"{HERE}what_calls_the_forward.<lambda>"),
    bound_method_of_a_hidden_container: (MLP, "LlamaMLP.forward", f"{HERE}Steered.forward"),
    bound_method_of_a_changed_copy: (MLP, "LlamaMLP.forward", f"{HERE}Steered.forward"),
    autograd_function: (MLP, "LlamaMLP.forward", f"{HERE}SteeringFunction.forward"),
    wrapper_module: (MLP, "Steered", f"{HERE}Steered"),
    module_in_the_place_of_an_activation: (f"{MLP}.act_fn", "Steered", f"{HERE}Steered"),
    another_class: (MLP, "SteeredMLP", f"{HERE}SteeredMLP"),
    hook_of_accelerates_kind: (MLP, "LlamaMLP._hf_hook", f"{HERE}SteeringHook.post_forward"),
    script: (f"{MLP}.1", "RecursiveScriptModule", "torch.jit._script.RecursiveScriptModule"),
    weight_of_another_class: (f"{MLP}.down_proj", "SteeringWeight", f"{HERE}SteeringWeight"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
@pytest.mark.parametrize("change", UNKNOWN, ids=lambda change: change.__name__)
def test_unknown_code_of_a_module_is_untouched_and_relayed_where_the_user_vouches_for_it(change):
    name, what, origin = UNKNOWN[change]
    models = pair("llama")
    for model in models:
        change(model)
    assert_untouched(models, INPUTS, f"{what} (module {name!r}) runs ")
    reason = models[1].relay.last.reason
    assert origin in reason
    assert f"trust=[{name!r}] vouches for it" in reason
    # Here the user is wrong, which shows that the refusal is needed.
    for trust in ([name], ["*.layers.0.mlp*"], lambda found, module: found.startswith(MLP)):
        relay_hf.patch_model(models[1], trust=trust)
        assert_wrong(models, INPUTS)
    relay_hf.patch_model(models[1], trust=["model.layers.1.*", "model"])
    assert_untouched(models, INPUTS, origin)


def steering_on_a_class(monkeypatch):
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, hidden: steered(forward(self, hidden)))
    return f"LlamaMLP (module {MLP!r}) runs {HERE}steering_on_a_class.<lambda>"


def steering_in_a_file_of_models(monkeypatch):
    rotate = modeling_llama.apply_rotary_pos_emb

    def other(query, key, *args, **kwargs):
        query, key = rotate(query, key, *args, **kwargs)
        return query + 2.0 * query.mean(dim=2, keepdim=True), key

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", other)
    return (
        "the function transformers.models.llama.modeling_llama.apply_rotary_pos_emb was replaced by "
        f"{HERE}steering_in_a_file_of_models.other"
    )


def steering_in_pytorch(monkeypatch):
    activate = nn.functional.silu
    monkeypatch.setattr(nn.functional, "silu", lambda *args, **kwargs: steered(activate(*args, **kwargs)))
    return f"the function torch.nn.functional.silu was replaced by {HERE}steering_in_pytorch.<lambda>"


def steering_by_an_object_in_pytorch(monkeypatch):
    monkeypatch.setattr(nn.functional, "silu", Callable(nn.functional.silu))
    return f"the function torch.nn.functional.silu was replaced by {HERE}Callable.__call__"


def steering_in_every_module(monkeypatch):
    call = nn.Module.__call__

    def other(self, *args, **kwargs):
        found = call(self, *args, **kwargs)
        return steered(found) if type(self) is LlamaMLP else found

    monkeypatch.setattr(nn.Module, "__call__", other)
    return f"the function Module.__call__ was replaced by {HERE}steering_in_every_module.other"


def other_inputs(monkeypatch):
    prepare = GenerationMixin.prepare_inputs_for_generation

    def other(self, *args, **kwargs):
        inputs = prepare(self, *args, **kwargs)
        ids = inputs["input_ids"]
        inputs["input_ids"] = (ids + ids.sum(dim=1, keepdim=True)) % 97
        return inputs

    monkeypatch.setattr(LlamaForCausalLM, "prepare_inputs_for_generation", other, raising=False)
    return f"LlamaForCausalLM (module '') runs {HERE}other_inputs.other"


@pytest.mark.parametrize(
    "change",
    [
        steering_on_a_class,
        steering_in_a_file_of_models,
        steering_in_pytorch,
        steering_by_an_object_in_pytorch,
        steering_in_every_module,
        other_inputs,
    ],
)
def test_unknown_code_of_a_class_or_a_file_is_untouched(change, monkeypatch):
    models = pair("llama")
    reason = change(monkeypatch)
    assert_untouched(models, INPUTS, reason)
    monkeypatch.setattr(eligible_code, "_module_refusal", lambda *args: None)
    assert_wrong(models, INPUTS)


class Doubled(nn.Module):
    """Of a weight: it sees no token."""

    def forward(self, weight):
        return 2.0 * weight


def parametrized(model):
    parametrize.register_parametrization(mlp_of(model).up_proj, "weight", Doubled())
    parametrizations.weight_norm(mlp_of(model).down_proj)


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
        replaced_forward(model)
    assert_untouched(models, INPUTS, f"LlamaMLP.forward (module {MLP!r}) runs {HERE}replaced_forward.<lambda>")


def test_a_model_of_the_users_own_does_not_make_its_file_known_in_the_place_of_others(monkeypatch):
    torch.manual_seed(0)
    models = beside_a_patched_copy(OwnModel(tiny_model("llama").config).eval())
    assert_untouched(models, INPUTS, steering_in_a_file_of_models(monkeypatch))


def test_an_attribute_that_cannot_be_looked_at_is_no_error_of_the_call():
    class Gone:
        pass

    models = pair("llama")
    for model in models:
        vars(model.model.layers[0])["owner"] = weakref.proxy(Gone())
    for _ in range(3):
        assert torch.equal(*(model.generate(**INPUTS, max_new_tokens=4) for model in models))
        assert "a relayed prefill raised ReferenceError" in models[1].relay.last.reason


class Odd:
    """It hides what it wraps."""

    def __init__(self, function):
        self.function = function

    def __call__(self, hidden):
        return self.function(hidden)

    @property
    def __wrapped__(self):
        raise ValueError("not for you")


def test_code_that_cannot_be_looked_at_is_untouched():
    models = pair("llama")
    for model in models:
        mlp_of(model).forward = Odd(mlp_of(model).forward)
    assert_untouched(models, INPUTS, "the model's code could not be looked at: ValueError: not for you")


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


@pytest.mark.parametrize("trust", ["model.layers.0.mlp", [3], 5, {"model"}], ids=repr)
def test_what_the_user_vouches_for_is_a_list_of_names_or_a_function(trust):
    with pytest.raises(TypeError, match="trust must be a list of names of modules"):
        relay_hf.RelayConfig(trust=trust)


def test_hooks_are_vouched_for_like_code():
    models = pair("llama")
    for model in models:
        mlp_of(model).register_forward_hook(lambda module, inputs, output: 0.5 * output)
    assert_untouched(models, INPUTS, f"a forward hook on LlamaMLP ({HERE}")
    assert f"trust=[{MLP!r}] vouches for it" in models[1].relay.last.reason
    relay_hf.patch_model(models[1], trust=[MLP])
    assert_relayed(models, INPUTS)


def test_what_is_kept_and_warm_ask_the_same():
    _, ours = pair("llama")
    another_class(ours)
    with pytest.raises(relay_hf.RelayError, match=r"SteeredMLP \(module 'model.layers.0.mlp'\) runs "):
        ours.relay.warm(INPUTS["input_ids"][0, :20])
    relay_hf.patch_model(ours, trust=[MLP])
    assert len(ours.relay.warm(INPUTS["input_ids"][0, :20])) == 20


def test_another_implementation_of_experts_is_untouched(monkeypatch):
    def other(self, hidden, *args, **kwargs):
        return steered(batched_mm_experts_forward(self, hidden, *args, **kwargs)[None])[0]

    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, "steered", other)
    models = pair("mixtral")
    for model in models:
        model.set_experts_implementation("steered")
    origin = "test_another_implementation_of_experts_is_untouched.other"
    assert_untouched(models, INPUTS, f"the function of experts 'steered' was replaced by {HERE}{origin}")


def test_a_cache_that_was_changed_for_all_is_untouched(monkeypatch):
    update = DynamicLayer.update

    def other(self, keys, values, *args, **kwargs):
        return update(self, keys.round(decimals=1), values, *args, **kwargs)

    models = pair("llama")
    monkeypatch.setattr(DynamicLayer, "update", other)
    assert_untouched(models, INPUTS, "a method of DynamicLayer was replaced by")
