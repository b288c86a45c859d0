"""Code around a model's modules that is not known to act token by token: classes, files, PyTorch's functions, modes."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, GenerationMixin, LlamaForCausalLM, PreTrainedModel, activations
from transformers.cache_utils import DynamicLayer
from transformers.integrations import moe, sdpa_attention
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP

import relay_hf
from relay_hf.generation import eligible_code

from . import steering
from .compare import assert_relayed, assert_untouched, assert_wrong, pair
from .steering import INPUTS, MLP, Callable, steered, steering_in_a_file_of_models

HERE = f"{__name__}."
STEERING = f"{steering.__name__}."
LLAMA = modeling_llama.__name__


def steering_on_a_class(monkeypatch):
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, hidden: steered(forward(self, hidden)))
    return f"LlamaMLP (module {MLP!r}) runs {HERE}steering_on_a_class.<lambda>"


def steering_in_pytorch(monkeypatch):
    activate = nn.functional.silu
    monkeypatch.setattr(nn.functional, "silu", lambda *args, **kwargs: steered(activate(*args, **kwargs)))
    return f"the function torch.nn.functional.silu was replaced by {HERE}steering_in_pytorch.<lambda>"


def steering_by_an_object_in_pytorch(monkeypatch):
    monkeypatch.setattr(nn.functional, "silu", Callable(nn.functional.silu))
    return f"the function torch.nn.functional.silu was replaced by {STEERING}Callable.__call__"


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


class SteeringDescriptor:
    def __init__(self, function):
        self.function = function

    def __get__(self, module, kind=None):
        return lambda hidden: steered(self.function(module, hidden))


def a_descriptor_on_a_class(monkeypatch):
    monkeypatch.setattr(LlamaMLP, "forward", SteeringDescriptor(LlamaMLP.forward))
    return f"LlamaMLP (module {MLP!r}) runs {HERE}SteeringDescriptor.__get__"


def a_method_by_type_on_a_class(monkeypatch):
    forward = LlamaMLP.forward

    @functools.singledispatchmethod
    def other(self, hidden):
        return steered(forward(self, hidden))

    monkeypatch.setattr(LlamaMLP, "forward", other)
    return f"LlamaMLP (module {MLP!r}) runs {HERE}a_method_by_type_on_a_class.other"


def another_way_to_take_layers_from_a_list(monkeypatch):
    take = nn.ModuleList.__getitem__

    def other(self, index):
        layers = take(self, index)
        return [lambda *args, layer=each, **kwargs: steered(layer(*args, **kwargs)) for each in layers]

    monkeypatch.setattr(nn.ModuleList, "__getitem__", other)
    return f"ModuleList (module 'model.layers') runs {HERE}another_way_to_take_layers_from_a_list.other"


def steering_in_every_model(monkeypatch):
    call = nn.Module.__call__

    def other(self, *args, **kwargs):
        found = call(self, *args, **kwargs)
        if hasattr(found, "last_hidden_state"):
            found.last_hidden_state = steered(found.last_hidden_state)
        return found

    monkeypatch.setattr(PreTrainedModel, "__call__", other, raising=False)
    return f"the function PreTrainedModel.__call__ was replaced by {HERE}steering_in_every_model.other"


def a_function_without_python_code_in_a_file_of_models(monkeypatch):
    monkeypatch.setattr(modeling_llama, "rotate_half", functools.partial(torch.softmax, dim=2))
    return f"the function {LLAMA}.rotate_half was replaced by torch._VariableFunctionsClass.softmax"


def another_registry_of_attention_in_a_file_of_models(monkeypatch):
    registry = AttentionInterface()

    def other(*args, **kwargs):
        output, weights = sdpa_attention.sdpa_attention_forward(*args, **kwargs)
        return steered(output), weights

    registry["sdpa"] = other
    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", registry)
    return f"the function {LLAMA}.ALL_ATTENTION_FUNCTIONS was replaced by {HERE}another_registry"


def steering_in_pytorchs_own_functions(monkeypatch):
    rsqrt = torch.rsqrt
    monkeypatch.setattr(torch, "rsqrt", lambda variance: steered(rsqrt(variance)))
    return f"the function torch.rsqrt was replaced by {HERE}steering_in_pytorchs_own_functions.<lambda>"


def steering_in_a_method_of_tensors(monkeypatch):
    power = Tensor.pow
    monkeypatch.setattr(Tensor, "pow", lambda self, exponent: steered(power(self, exponent)))
    return f"the function Tensor.pow was replaced by {HERE}steering_in_a_method_of_tensors.<lambda>"


def steering_in_an_operator_of_tensors(monkeypatch):
    multiply = Tensor.__mul__

    def other(self, by):
        found = multiply(self, by)
        return steered(found) if found.dim() == 3 else found

    monkeypatch.setattr(Tensor, "__mul__", other)
    return f"the function Tensor.__mul__ was replaced by {HERE}steering_in_an_operator_of_tensors.other"


def softmax_in_the_place_of_an_activation(monkeypatch):
    monkeypatch.setattr(nn.functional, "silu", functools.partial(torch.softmax, dim=1))
    return "the function torch.nn.functional.silu was replaced by torch._VariableFunctionsClass.softmax"


def a_namespace_in_the_place_of_a_module_that_a_file_imports(monkeypatch):
    functional = SimpleNamespace(silu=lambda hidden: steered(nn.functional.silu(hidden)))
    monkeypatch.setattr(activations, "nn", SimpleNamespace(**{**vars(nn), "functional": functional}))
    return "the function transformers.activations.nn was replaced by types.SimpleNamespace"


def another_prefill_of_every_model(monkeypatch):
    prefill = GenerationMixin._prefill

    def other(self, *args, **kwargs):
        output = prefill(self, *args, **kwargs)
        output.logits = output.logits.flip(-1)
        return output

    monkeypatch.setattr(GenerationMixin, "_prefill", other)
    return f"LlamaForCausalLM (module '') runs {HERE}another_prefill_of_every_model.other"


def another_choice_of_attention_functions(monkeypatch):
    choose = AttentionInterface.get_interface

    def other(self, *args):
        function = choose(self, *args)

        def attend(*args, **kwargs):
            output, weights = function(*args, **kwargs)
            return steered(output), weights

        return attend

    monkeypatch.setattr(AttentionInterface, "get_interface", other)
    return f"the function AttentionInterface.get_interface was replaced by {HERE}another_choice"


def other_code_in_a_method(monkeypatch):
    """As IPython's autoreload puts it there: the function is the same."""

    def forward(self, hidden_states):
        hidden = hidden_states.float()
        hidden = hidden + 2.0 * hidden.mean(dim=1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm.forward, "__code__", forward.__code__)
    return f"runs {HERE}other_code_in_a_method.forward"


def other_code_in_a_function(monkeypatch):
    def rotate_half(x):
        return x.flip(-1) + 2.0 * x.mean(dim=2, keepdim=True)

    monkeypatch.setattr(modeling_llama.rotate_half, "__code__", rotate_half.__code__)
    return f"the function {LLAMA}.rotate_half was replaced by {HERE}other_code_in_a_function.rotate_half"


def another_functional(monkeypatch):
    functional = SimpleNamespace(**{**vars(nn.functional), "silu": lambda hidden: steered(torch.sigmoid(hidden))})
    monkeypatch.setattr(nn, "functional", functional)
    return "the function torch.nn.functional was replaced by "


@pytest.mark.parametrize(
    "change",
    [
        another_choice_of_attention_functions,
        other_code_in_a_method,
        other_code_in_a_function,
        another_functional,
        a_namespace_in_the_place_of_a_module_that_a_file_imports,
        another_prefill_of_every_model,
        a_descriptor_on_a_class,
        a_method_by_type_on_a_class,
        another_way_to_take_layers_from_a_list,
        steering_in_every_model,
        a_function_without_python_code_in_a_file_of_models,
        another_registry_of_attention_in_a_file_of_models,
        steering_in_pytorchs_own_functions,
        steering_in_a_method_of_tensors,
        steering_in_an_operator_of_tensors,
        softmax_in_the_place_of_an_activation,
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
    assert_relayed(models, INPUTS)
    reason = change(monkeypatch)
    assert_untouched(models, INPUTS, reason)
    with monkeypatch.context() as without:
        without.setattr(eligible_code, "_module_refusal", lambda *args: None)
        assert_wrong(models, INPUTS)
    monkeypatch.undo()
    assert_relayed(models, INPUTS)


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


def steering_in_what_attention_repeats(monkeypatch):
    repeat = sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *args: steered(repeat(*args), dim=2))
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", lambda *args: False)
    return "the attention implementation 'sdpa' was replaced by one that uses"


class SteeringTorch:
    def __getattr__(self, name):
        return getattr(torch, name)

    def cat(self, tensors, dim):
        return steered(torch.cat(tensors, dim=dim), dim=2)


def something_in_the_place_of_a_module_that_a_file_imports(monkeypatch):
    monkeypatch.setattr(modeling_llama, "torch", SteeringTorch())
    return f"eager_attention_forward of {LLAMA} was replaced by one that uses {HERE}SteeringTorch.__getattr__"


@pytest.mark.parametrize(
    "change",
    [
        steering_in_what_attention_repeats,
        something_in_the_place_of_a_module_that_a_file_imports,
    ],
)
def test_what_an_attention_function_uses_is_looked_at_and_nobody_can_vouch_for_it(change, monkeypatch):
    models = pair("llama", num_key_value_heads=1)
    reason = change(monkeypatch)
    relay_hf.patch_model(models[1], trust=["*"])
    assert_untouched(models, INPUTS, reason)
    monkeypatch.setattr(eligible_code, "_attention_refusal", lambda *args: None)
    assert_wrong(models, INPUTS)


def test_what_an_implementation_of_experts_uses_is_looked_at(monkeypatch):
    project = moe._batched_linear
    models = pair("mixtral")
    for model in models:
        model.set_experts_implementation("batched_mm")
    assert_relayed(models, INPUTS)
    monkeypatch.setattr(moe, "_batched_linear", lambda *args, **how: steered(project(*args, **how), dim=0))
    assert_untouched(models, INPUTS, "_batched_linear")


class SteeringFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        return steered(found) if function is nn.functional.silu else found


class SteeringOperators(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        return steered(found) if function is torch.ops.aten.silu.default else found


def test_an_operator_that_was_given_other_code_is_untouched():
    models = pair("llama")
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("silu", lambda hidden: steered(hidden * torch.sigmoid(hidden)), "CPU", allow_override=True)
        assert_untouched(models, INPUTS, "an operator of PyTorch's, torch.ops.aten/silu/CPU, was given other code")
    finally:
        library._destroy()
    assert_relayed(models, INPUTS)


@pytest.mark.parametrize("mode", [SteeringFunctions, SteeringOperators])
def test_a_mode_of_the_users_around_a_call_is_untouched(mode, monkeypatch):
    models = pair("llama")
    with mode():
        assert_untouched(models, INPUTS, f"a mode is around the call, {HERE}{mode.__name__}")
        relay_hf.patch_model(models[1], trust=[""])
        assert_wrong(models, INPUTS)
    relay_hf.patch_model(models[1], trust=[])
    assert_relayed(models, INPUTS)


@pytest.mark.parametrize("mode", [lambda: torch.device("cpu"), BaseTorchFunctionMode])
def test_a_mode_of_pytorchs_around_a_call_is_relayed(mode):
    models = pair("llama")
    with mode():
        assert_relayed(models, INPUTS)
