"""What a call runs under: gradient modes, inference mode, compile options."""

import pytest
import torch
from transformers import CompileConfig

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of

from .compare import INPUTS, NEW, PREFIX, assert_relayed, assert_same, generate, seeded

MODES = {"no grad": torch.no_grad, "grad": torch.enable_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_mode(pair, mode):
    def call(model):
        with MODES[mode]():
            return generate(model)

    output = assert_relayed(pair, call)
    assert output.logits[0].is_inference() == (mode == "inference")


# Tensors made in inference mode can't be written to outside of it.
SWITCHES = [("inference", "no grad"), ("no grad", "inference")]


@pytest.mark.parametrize(("first", "second"), SWITCHES)
def test_a_prefix_kept_under_one_mode_is_used_and_extended_under_another(pair, first, second):
    stock, ours = pair
    ours.relay.clear()
    with MODES[first]():
        generate(ours)
    for inputs in (prompts(PREFIX, (4, 2)), prompts(2 * PREFIX, (3, 5))):
        with MODES[second]():
            assert_same(generate(ours, inputs), generate(stock, inputs))
        assert ours.relay.last.relayed, ours.relay.last
        assert ours.relay.last.prefix_tokens_reused == PREFIX


@pytest.mark.parametrize(("first", "second"), SWITCHES)
def test_a_cache_returned_under_one_mode_is_continued_under_another(pair, first, second):
    def call(model):
        with MODES[first]():
            output = generate(model, eos_token_id=None)
        mask = torch.nn.functional.pad(INPUTS["attention_mask"], (0, NEW), value=1)
        inputs = {"input_ids": output.sequences, "attention_mask": mask}
        with MODES[second]():
            return output.sequences, generate(model, inputs, **{CACHE: cache_of(output)})

    stock, ours = pair
    ours.relay.clear()
    assert_same(seeded(call, ours), seeded(call, stock))
    assert (ours.relay.last.relayed, ours.relay.last.reason) == (True, "a returned cache, continued")


COMPILING = {
    "disabled": lambda: {"disable_compile": True},
    "where the device is worth it": lambda: {"compile_config": CompileConfig()},
    "on any device": lambda: {"compile_config": compile_anywhere()},
}


def compile_anywhere():
    config = CompileConfig()
    config._compile_all_devices = True  # what Transformers' own tests set
    return config


@pytest.mark.parametrize("mode", COMPILING)
def test_compile_options(pair, mode):
    """A growing cache is not compiled for; nor is a RelayCache, though it is not a DynamicCache."""
    assert_relayed(pair, lambda model: generate(model, **COMPILING[mode]()))

    def call(model):
        cache = relay_hf.RelayCache(model.config) if hasattr(model, "relay") else None
        return generate(model, **{CACHE: cache}, **COMPILING[mode]())

    assert_relayed(pair, call)
