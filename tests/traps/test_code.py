"""Code in a module that is not known to act token by token: a user's own forwards, classes, objects and wrappers."""

import copy
import functools
import operator
import weakref

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers.models.llama.modeling_llama import LlamaMLP

import relay_hf

from . import steering
from .compare import assert_relayed, assert_untouched, assert_wrong, pair
from .steering import INPUTS, MLP, Callable, Steered, SteeredMLP, SteeredTensor, mlp_of, replace_forward, steered

HERE = f"{__name__}."
STEERING = f"{steering.__name__}."


class SteeringHook(ModelHook):
    def post_forward(self, module, output):
        return steered(output)


class SteeringWeight(nn.Parameter):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        found = super().__torch_function__(function, types, args, kwargs or {})
        return steered(found) if function is nn.functional.linear else found


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


def function_without_python_code(model):
    mlp_of(model).forward = functools.partial(torch.softmax, dim=1)


def callable_without_python_code(model):
    mlp_of(model).forward = operator.methodcaller("softmax", 1)


def operator_of_pytorchs(model):
    mlp_of(model).forward = functools.partial(torch.ops.aten.cumsum.default, dim=1)


def steering_backend(graph, inputs):
    return lambda *given: tuple(steered(each) for each in graph.forward(*given))


def compiled_by_a_backend_of_the_users(model):
    mlp_of(model).forward = torch.compile(mlp_of(model).forward, backend=steering_backend)


def compiled_as_a_module_by_a_backend_of_the_users(model):
    mlp_of(model).compile(backend=steering_backend)


def buffer_of_another_class(model):
    norm = model.model.norm
    weight = norm._parameters.pop("weight")
    norm.register_buffer("weight", weight.detach().as_subclass(SteeredTensor))


def attribute_of_another_class(model):
    norm = model.model.norm
    weight = norm._parameters.pop("weight")
    norm.__dict__["weight"] = weight.detach().as_subclass(SteeredTensor)


class MeanOfTokens:
    """In the place of a number."""

    def __radd__(self, hidden):
        return hidden.mean(dim=1, keepdim=True)


def object_in_the_place_of_a_number(model):
    model.model.norm.variance_epsilon = MeanOfTokens()


class SteeredLayers(list):
    def __getitem__(self, index):
        layers = list.__getitem__(self, index)
        return [lambda *args, layer=each, **kwargs: steered(layer(*args, **kwargs)) for each in layers]


def list_of_another_class(model):
    model.model.__dict__["layers"] = SteeredLayers(model.model._modules["layers"])


def module_in_a_list(model):
    first, *others = model.model._modules["layers"]
    model.model.__dict__["layers"] = [Steered(first), *others]


class SteeringVariant:
    @staticmethod
    def forward(module, active_adapter, x, result, **kwargs):
        return steered(result)


def variant_of_an_adapter(model):
    torch.manual_seed(0)
    inject_adapter_in_model(LoraConfig(target_modules=["down_proj"], init_lora_weights=False), model)
    mlp_of(model).down_proj.lora_variant = {"default": SteeringVariant()}


class Counting(nn.Module):
    """A weight that is another one in each forward."""

    def __init__(self):
        super().__init__()
        self.forwards = 0

    def forward(self, weight):
        self.forwards += 1
        return weight * (1 + self.forwards % 3)


def parametrization_of_the_users(model):
    parametrize.register_parametrization(mlp_of(model).up_proj, "weight", Counting())


def linear_with_an_attribute_less_and_a_forward_more(model):
    linear = mlp_of(model).down_proj
    forward = linear.forward
    del linear.in_features
    linear.forward = lambda hidden: steered(forward(hidden))


def softmax_over_tokens(model):
    model.model.layers[0].mlp = nn.Sequential(mlp_of(model), nn.Softmax(dim=1)).eval()


def attention_of_pytorchs(model):
    torch.manual_seed(0)
    model.model.layers[0].mlp = nn.TransformerEncoderLayer(32, 2, batch_first=True).eval()


def softmax_of_pytorchs_functions(model):
    mlp_of(model).forward = functools.partial(nn.functional.softmax, dim=1)


def softmax_that_is_no_child(model):
    mlp_of(model).__dict__["act_fn"] = nn.Softmax(dim=1)


NORM, WITHOUT = "model.norm", "LlamaMLP.forward"
UNKNOWN = {
    function_without_python_code: (MLP, WITHOUT, "torch._VariableFunctionsClass.softmax"),
    callable_without_python_code: (MLP, WITHOUT, "operator.methodcaller"),
    operator_of_pytorchs: (MLP, WITHOUT, "aten::cumsum"),
    compiled_by_a_backend_of_the_users: (MLP, WITHOUT, f"{HERE}steering_backend"),
    compiled_as_a_module_by_a_backend_of_the_users: (MLP, "LlamaMLP._compiled_call_impl", f"{HERE}steering_backend"),
    buffer_of_another_class: (NORM, "SteeredTensor", f"{STEERING}SteeredTensor"),
    attribute_of_another_class: (NORM, "LlamaRMSNorm.weight", f"{STEERING}SteeredTensor.__torch_function__"),
    object_in_the_place_of_a_number: (NORM, "LlamaRMSNorm.variance_epsilon", f"{HERE}MeanOfTokens.__radd__"),
    list_of_another_class: ("model", "LlamaModel.layers", f"{HERE}SteeredLayers.__getitem__"),
    module_in_a_list: ("model", "LlamaModel.layers", f"{STEERING}Steered.forward"),
    variant_of_an_adapter: (f"{MLP}.down_proj", "Linear.lora_variant", f"{HERE}SteeringVariant.forward"),
    parametrization_of_the_users: (f"{MLP}.up_proj.parametrizations.weight.0", "Counting", f"{HERE}Counting"),
    linear_with_an_attribute_less_and_a_forward_more: (f"{MLP}.down_proj", "Linear.forward", ".<lambda>"),
    softmax_of_pytorchs_functions: (MLP, WITHOUT, "torch.nn.functional.softmax"),
    softmax_that_is_no_child: (MLP, "LlamaMLP.act_fn", "torch.nn.modules.activation.Softmax"),
    softmax_over_tokens: (f"{MLP}.1", "Softmax", "torch.nn.modules.activation.Softmax"),
    attention_of_pytorchs: (MLP, "TransformerEncoderLayer", "transformer.TransformerEncoderLayer"),
    replace_forward: (MLP, "LlamaMLP.forward", f"{STEERING}replace_forward.<lambda>"),
    replaced_forward_that_looks_like_the_old_one: (MLP, "LlamaMLP.forward", ".other"),
    partial_forward: (MLP, "LlamaMLP.forward", f"{HERE}partial_forward.other"),
    callable_object: (MLP, "LlamaMLP.forward", f"{STEERING}Callable.__call__"),
    behind_a_decorator_of_pytorchs: (MLP, "LlamaMLP.forward", ".<lambda>"),
    compiled: (MLP, "LlamaMLP.forward", f"{HERE}compiled.<lambda>"),
    what_calls_the_forward: (MLP, "LlamaMLP._call_impl", f"{HERE}what_calls_the_forward.<lambda>"),
    bound_method_of_a_hidden_container: (MLP, "LlamaMLP.forward", f"{STEERING}Steered.forward"),
    bound_method_of_a_changed_copy: (MLP, "LlamaMLP.forward", f"{STEERING}Steered.forward"),
    autograd_function: (MLP, "LlamaMLP.forward", f"{HERE}SteeringFunction.forward"),
    wrapper_module: (MLP, "Steered", f"{STEERING}Steered"),
    module_in_the_place_of_an_activation: (f"{MLP}.act_fn", "Steered", f"{STEERING}Steered"),
    another_class: (MLP, "SteeredMLP", f"{STEERING}SteeredMLP"),
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
    for trust in ([name], [f"?{name[1:]}"], lambda found, module: found == name):
        relay_hf.patch_model(models[1], trust=trust)
        assert_wrong(models, INPUTS)
    relay_hf.patch_model(models[1], trust=["model.layers.1.*", "lm_head"])
    assert_untouched(models, INPUTS, origin)


@pytest.mark.parametrize("trust", ["model.layers.0.mlp", [3], 5, {"model"}], ids=repr)
def test_what_the_user_vouches_for_is_a_list_of_names_or_a_function(trust):
    with pytest.raises(TypeError, match="trust must be a list of names of modules"):
        relay_hf.RelayConfig(trust=trust)


class CountingMask(prune.BasePruningMethod):
    """A known hook of a class that is not."""

    PRUNING_TYPE = "unstructured"
    forwards = 0

    def compute_mask(self, t, default_mask):
        return default_mask

    def apply_mask(self, module):
        self.forwards += 1
        return super().apply_mask(module) * (1 + self.forwards % 3)


def test_a_known_hook_of_a_class_of_the_users_is_untouched():
    models = pair("llama")
    for model in models:
        CountingMask.apply(mlp_of(model).up_proj, "weight")
    assert_untouched(models, INPUTS, f"a forward hook on Linear ({HERE}CountingMask)")


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


def test_an_attribute_that_cannot_be_looked_at_is_no_error_of_the_call():
    class Gone:
        pass

    models = pair("llama")
    for model in models:
        vars(model.model.layers[0])["owner"] = weakref.proxy(Gone())
    for _ in range(3):
        assert torch.equal(*(model.generate(**INPUTS, max_new_tokens=4) for model in models))
        assert "the model's code could not be looked at: ReferenceError" in models[1].relay.last.reason


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
