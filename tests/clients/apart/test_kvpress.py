"""kvpress: it puts a wrapper around every registered attention function when it is imported."""

import copy
import importlib

import pytest
import torch

import relay_hf
from relay_hf.model.upstream.attention import ATTENTION_FUNCTIONS
from relay_hf.testing import prompts
from tests.support.tiny_models import tiny_model
from tests.traps.compare import assert_relayed, assert_untouched

# fire, which it imports, needs a module that Python 3.13 removes.
pytestmark = pytest.mark.filterwarnings("ignore:'pipes' is deprecated:DeprecationWarning")

INPUTS = prompts(20, (3, 7, 1, 5))
HOOK = "a forward hook on LlamaAttention (kvpress.presses.base_press.BasePress.forward_hook)"
REPLACED = "the attention implementation 'sdpa' was replaced by kvpress.attention_patch.attention_patch."


@pytest.fixture
def patched():
    """Before the import, so that it wraps the function of relayed forwards too."""
    stock = tiny_model("llama")
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


@pytest.fixture
def kvpress(patched, monkeypatch):
    """The package. Its first import puts the wrappers there, and a later one does not."""
    monkeypatch.setattr(ATTENTION_FUNCTIONS, "_local_mapping", {})  # where it puts them
    found = importlib.import_module("kvpress")
    if not ATTENTION_FUNCTIONS._local_mapping:
        found.patch_attention_functions()
    return found


@pytest.mark.parametrize("patched_before", [True, False])
def test_without_a_press_every_call_is_relayed(patched, kvpress, patched_before):
    stock, ours = patched
    if not patched_before:
        ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    assert "kvpress" in ATTENTION_FUNCTIONS["sdpa"].__code__.co_filename
    assert_relayed((stock, ours), INPUTS)


def test_a_press_is_named_while_it_is_on_the_model(patched, kvpress):
    """With Transformers 5.24 its hook finds no cache, which it asks for by the name of before: stock raises too."""
    _, ours = patched
    options = {**INPUTS, "max_new_tokens": 8}
    with kvpress.KnormPress(0.5)(ours):
        decision = ours.relay.explain(**options)
        assert not decision.relayed
        assert decision.reason.startswith(HOOK)
    assert ours.relay.explain(**options).relayed
    assert_relayed(patched, INPUTS)


def test_keys_that_a_press_has_masked_are_named(patched, kvpress):
    _, ours = patched
    attention = ours.model.layers[0].self_attn
    attention.masked_key_indices = tuple(torch.tensor([number]) for number in (0, 0, 3))
    decision = ours.relay.explain(**INPUTS, max_new_tokens=8)
    assert not decision.relayed
    assert decision.reason.startswith(REPLACED)


def test_another_wrapper_around_kvpress_is_untouched(patched, kvpress):
    found = ATTENTION_FUNCTIONS["sdpa"]

    def other(module, query, key, value, attention_mask, dropout=0.0, **kwargs):
        return found(module, query, key, value, attention_mask, dropout, **kwargs)

    ATTENTION_FUNCTIONS["sdpa"] = other
    assert_untouched(patched, INPUTS, f"the attention implementation 'sdpa' was replaced by {other.__module__}.")
