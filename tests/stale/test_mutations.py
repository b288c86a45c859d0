"""A kept prefix outlives nothing that changes what the model computes: each way is one, and is noticed."""

import copy

import pytest
import torch
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import prune
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaModel, LlamaRMSNorm

import relay_hf
import relay_hf.model.view
from relay_hf.generation import eligible_code
from relay_hf.model.device import store_key
from relay_hf.model.fingerprint.keeping import keeping_refusal
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .common import blind, logits, mutate, reusing
from .mutations import INPUTS, OWN, SETTINGS, STRUCTURE, WEIGHTS, WINDOWED, OfItsOwn, layer


def plain_model():
    return tiny_model("llama")


def windowed_model():
    return tiny_model("gemma2")


def own_model():
    model = tiny_model("llama")
    layer(model).mlp = OfItsOwn(layer(model).mlp).eval()
    return model


CASES = [
    pytest.param(build, change, id=name)
    for build, changes in (
        (plain_model, WEIGHTS | STRUCTURE | SETTINGS),
        (windowed_model, WINDOWED),
        (own_model, OWN),
    )
    for name, change in changes.items()
]


def test_a_kept_prefix_is_bit_by_bit_the_one_that_would_be_made_anew():
    """So whatever differs in the tests below, a stale prefix did it."""
    ours = reusing(plain_model())
    kept = logits(ours)
    assert ours.relay.last.prefix_tokens_reused == 30
    ours.relay.clear()
    assert torch.equal(logits(ours), kept)
    assert ours.relay.last.prefix_tokens_reused == 0


@pytest.mark.parametrize(("build", "change"), CASES)
def test_a_changed_model_is_noticed(build, change, monkeypatch):
    stock = build()
    ours, unguarded = reusing(stock), reusing(stock)
    for model in (stock, ours, unguarded):
        mutate(model, change)
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.relayed, ours.relay.last
    assert ours.relay.last.prefix_tokens_reused == 0
    right = logits(ours)
    assert ours.relay.last.prefix_tokens_reused == 30  # of the model as it is now
    with monkeypatch.context() as context:
        blind(context)
        wrong = logits(unguarded)
        assert unguarded.relay.last.prefix_tokens_reused == 30
    assert not torch.equal(wrong, right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_dtype_has_prefixes_of_its_own(dtype, monkeypatch):
    """Those of another dtype would not even fit."""
    stock = plain_model()
    ours, unguarded = reusing(stock), reusing(stock)
    kept_in = store_key(unguarded)
    for model in (stock, ours, unguarded):
        model.to(dtype)
    tokens = generate(ours, INPUTS)
    assert ours.relay.last.relayed
    assert ours.relay.last.prefix_tokens_reused == 0
    if dtype == torch.float64:
        assert torch.equal(tokens, generate(stock, INPUTS))
    with monkeypatch.context() as context:
        blind(context)
        context.setattr(relay_hf.model.view, "store_key", lambda model: kept_in)
        wrong = logits(unguarded)
    stale_or_refused = unguarded.relay.last.prefix_tokens_reused == 30 or "raised" in unguarded.relay.last.reason
    assert stale_or_refused, unguarded.relay.last
    assert "raised" in unguarded.relay.last.reason or not torch.equal(wrong, logits(ours))


def halve_output(module, inputs, output):
    return output * 0.5


def double_input(module, inputs):
    return (inputs[0] * 2, *inputs[1:])


def of_every_mlp(module, inputs, output):
    return output * 0.5 if isinstance(module, LlamaMLP) else None


HOOKS = {
    "forward hook": lambda model: layer(model).mlp.register_forward_hook(halve_output),
    "forward pre-hook": lambda model: layer(model).mlp.register_forward_pre_hook(double_input),
    "hook on all modules": lambda model: torch.nn.modules.module.register_module_forward_hook(of_every_mlp),
    "pre-hook on all modules": lambda model: torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: double_input(module, inputs) if isinstance(module, LlamaMLP) else None
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_forward_hook_is_left_to_stock_and_its_prefix_is_back_when_it_is_gone(kind, monkeypatch):
    """The model without the hook is the one that the prefix was made with."""
    stock = plain_model()
    ours, before = reusing(stock), generate(stock, INPUTS)
    relay_hf.patch_model(ours, trust=())
    handles = [HOOKS[kind](model) for model in ((stock,) if "all modules" in kind else (stock, ours))]
    try:
        hooked = generate(stock, INPUTS)
        assert torch.equal(generate(ours, INPUTS), hooked)
        assert "a forward hook on" in ours.relay.last.reason
        right = logits(ours)
        with monkeypatch.context() as context:
            context.setattr(eligible_code, "_hook_refusal", lambda *_: None)
            wrong = logits(ours)
            assert ours.relay.last.prefix_tokens_reused == 30
        assert (wrong - right).abs().max() > 1e-3
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(generate(ours, INPUTS), before)
    assert ours.relay.last.prefix_tokens_reused == 30


def test_a_hook_that_was_there_when_the_model_was_patched_leaves_no_prefix():
    stock = plain_model()
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    handle = layer(ours).mlp.register_forward_hook(halve_output)
    for _ in range(2):
        generate(ours, INPUTS)
    assert ours.relay.prefixes == ()
    handle.remove()
    for reused in (0, 30):
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert ours.relay.last.prefix_tokens_reused == reused


def test_pruning_is_noticed_as_a_hook_and_when_it_is_made_permanent():
    stock = plain_model()
    ours = reusing(stock)
    for change, options in ((prune.l1_unstructured, {"amount": 0.5}), (prune.remove, {})):
        for model in (stock, ours):
            change(layer(model).self_attn.k_proj, "weight", **options)
        for reused in (0, 30):
            assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
            assert ours.relay.last.prefix_tokens_reused == reused


def test_a_forward_that_is_replaced_in_a_class_is_noticed(monkeypatch):
    stock = plain_model()
    ours = reusing(stock)
    forward = LlamaMLP.forward
    with monkeypatch.context() as context:
        context.setattr(LlamaMLP, "forward", lambda self, hidden: 0.5 * forward(self, hidden))
        for reused in (0, 30):
            assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
            assert ours.relay.last.prefix_tokens_reused == reused
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.prefix_tokens_reused == 0


@pytest.mark.parametrize("kind", [LlamaRMSNorm, LlamaModel])
def test_another_method_that_is_replaced_in_a_class_is_noticed(kind, monkeypatch):
    """Whether this forward calls it is not known."""
    ours = reusing(plain_model())
    monkeypatch.setattr(kind, "extra_repr", lambda self: "", raising=False)
    generate(ours, INPUTS)
    assert ours.relay.last.prefix_tokens_reused == 0


def test_another_attention_implementation_is_noticed():
    """Ours takes the place of either, so nothing here would be wrong; it need not stay so."""
    stock = plain_model()
    ours = reusing(stock)
    for model in (stock, ours):
        model.set_attn_implementation("eager")
    for reused in (0, 30):
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert ours.relay.last.prefix_tokens_reused == reused


def twice_the_scale(module, query, *args, **kwargs):
    return sdpa_attention_forward(module, query * 2, *args, **kwargs)


@pytest.mark.parametrize("name", ["sdpa", "of_ones_own"])
def test_an_attention_of_ones_own_is_left_to_stock(name, monkeypatch):
    """Under a name of its own, or in the place of Transformers'."""
    stock = plain_model()
    ours, before = reusing(stock), generate(stock, INPUTS)
    with monkeypatch.context() as context:
        context.setitem(AttentionInterface._global_mapping, name, twice_the_scale)
        for model in (stock, ours):
            model.set_attn_implementation(name)
        assert not torch.equal(generate(stock, INPUTS), before)
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert f"the attention implementation {name!r}" in ours.relay.last.reason
    for model in (stock, ours):
        model.set_attn_implementation("sdpa")
    assert torch.equal(generate(ours, INPUTS), before)
    assert ours.relay.last.prefix_tokens_reused == 30


def half_of_the_mask(*args, mask_function, **kwargs):
    def nearer(batch, head, query, key):
        return mask_function(batch, head, query, key) & (key > query - 6)

    return sdpa_mask(*args, mask_function=nearer, **{**kwargs, "allow_is_causal_skip": False})


REPLACED = {
    "mask of the attention": (ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", half_of_the_mask, "sdpa"),
    "eager_attention_forward": (vars(modeling_llama), "eager_attention_forward", twice_the_scale, "eager"),
    "functional.scaled_dot_product_attention": (
        vars(torch.nn.functional),
        "scaled_dot_product_attention",
        lambda query, *args, sdpa=torch.nn.functional.scaled_dot_product_attention, **kwargs: sdpa(
            query * 2, *args, **kwargs
        ),
        "sdpa",
    ),
}


@pytest.mark.parametrize("what", REPLACED)
def test_what_attention_is_made_of_is_not_passed_by(what, monkeypatch):
    """Replaced before the model is patched, or after: `clear()` would not help."""
    where, name, function, implementation = REPLACED[what]
    stock = plain_model()
    stock.set_attn_implementation(implementation)
    ours, before = reusing(stock), generate(stock, INPUTS)
    with monkeypatch.context() as context:
        context.setitem(where, name, function)
        expected = generate(stock, INPUTS)
        assert not torch.equal(expected, before)
        for model in (ours, relay_hf.patch_model(copy.deepcopy(stock), policy="always")):
            assert torch.equal(generate(model, INPUTS), expected)
            assert what in model.relay.last.reason
            assert "was replaced" in model.relay.last.reason
    assert torch.equal(generate(ours, INPUTS), before)
    assert ours.relay.last.prefix_tokens_reused == 30


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*deprecated")
def test_layers_that_are_quantized_by_what_a_batch_holds_are_left_to_stock():
    """And nothing of them can be kept: no attribute shows their weights."""
    stock = quantize_dynamic(plain_model(), {torch.nn.Linear}).eval()
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    for _ in range(2):
        assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
        assert "scales a batch by what is in it" in ours.relay.last.reason
    assert keeping_refusal(ours, list(ours.modules())) == "the model is quantized"
