"""Patched models whose attention runs in the Triton kernels, interpreted: tokens and logits are stock's."""

import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of
from tests.support.sweeps import swept
from tests.support.tiny_models import tiny_model

# Grouped heads, windows, softcap, sinks, unequal head sizes, one KV head for each query head.
FAMILIES = ["llama", "gpt_oss", "deepseek_v3", *swept(["mistral", "gemma2", "gpt2"])]


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_equals_stock(family):
    model = tiny_model(family)
    inputs = prompts(20, (3, 6))
    options = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    stock = model.generate(**inputs, **options)
    relay_hf.patch_model(model, policy="always", backend="triton")
    for _ in range(2):  # the prefix prefilled, then kept
        ours = model.generate(**inputs, **options)
        assert torch.equal(ours.sequences, stock.sequences)
        torch.testing.assert_close(torch.stack(ours.logits), torch.stack(stock.logits), rtol=0, atol=1e-4)
        assert model.relay.last.relayed
        assert model.relay.last.backend == "triton"
        assert "backend triton" in repr(model.relay.last)


def test_beams_equal_stock():
    model = tiny_model("llama")
    inputs = prompts(20, (3, 6))
    stock = model.generate(**inputs, max_new_tokens=4, num_beams=3)
    relay_hf.patch_model(model, policy="always", backend="triton")
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, num_beams=3), stock)
    assert model.relay.last.backend == "triton"


def test_a_second_turn_on_the_returned_cache_equals_stock():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always", backend="triton")
    inputs = prompts(20, (3, 6))
    first = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    turn = torch.cat([first.sequences, first.sequences[:, 5:9]], dim=1)
    grown = torch.ones(2, turn.shape[1] - inputs["input_ids"].shape[1], dtype=torch.int64)
    mask = torch.cat([inputs["attention_mask"], grown], dim=1)
    ours = model.generate(turn, attention_mask=mask, **{CACHE: cache_of(first)}, max_new_tokens=4)
    assert model.relay.last.reason == "a returned cache, continued"
    assert model.relay.last.backend == "triton"
    relay_hf.unpatch_model(model)
    assert torch.equal(ours, model.generate(turn, attention_mask=mask, max_new_tokens=4))


def test_what_the_kernels_cannot_take_is_left_to_stock_with_the_reason():
    model = tiny_model("llama").double()
    inputs = prompts(20, (3, 6))
    stock = model.generate(**inputs, max_new_tokens=4)
    relay_hf.patch_model(model, policy="always", backend="triton")
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), stock)
    assert not model.relay.last.relayed
    assert "the kernels take float32, bfloat16 and float16, not torch.float64" in model.relay.last.reason
    relay_hf.patch_model(model, backend="auto")
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), stock)
    assert model.relay.last.backend == "torch"
