"""The gate of policy="auto" says yes and no where measurements did."""

import types

import pytest

import relay_hf
from helpers import generate
from relay_hf.gate import ModelCost, Shape, expected_gain, refusal
from relay_hf.testing import VOCABULARY, prompts, tiny_model

C1 = ModelCost(parameters=85_000_000, itemsize=4, layers=12, kv_bytes=6144)


@pytest.mark.parametrize(
    ("shape", "pays"),
    [
        (Shape(rows=1, prefix=64, reused=64, new=1), True),
        (Shape(rows=1, prefix=64, reused=64, new=256), False),
        (Shape(rows=1, prefix=64, reused=0, new=32, returning=True), False),
        (Shape(rows=1, prefix=512, reused=512, new=256), True),
        (Shape(rows=1, prefix=512, reused=0, new=32, returning=True), True),
        (Shape(rows=2, prefix=16, reused=0, new=256), False),
        (Shape(rows=4, prefix=64, reused=0, new=32), True),
        (Shape(rows=16, prefix=1024, reused=0, new=128), True),
    ],
)
def test_where_it_pays(shape, pays):
    assert (expected_gain(shape, C1, threads=2) > 0) == pays


def test_model_cost_is_read_off_the_model():
    model = tiny_model("qwen3", tie_word_embeddings=True)
    cost = ModelCost.of(model.modules(), model.config)
    assert cost.parameters == sum(p.numel() for p in model.parameters()) - VOCABULARY * 32
    assert (cost.itemsize, cost.layers, cost.kv_bytes) == (4, 2, 2 * 2 * 16 * 4)


def test_of_stacked_experts_the_routed_share_counts():
    model = tiny_model("mixtral")
    experts = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    others = sum(p.numel() for p in model.parameters() if p.dim() != 3) - 2 * VOCABULARY * 32
    assert experts > 0
    assert ModelCost.of(model.modules(), model.config).parameters == others + experts * 2 // 4


def test_a_model_whose_cost_is_not_known_is_left_alone():
    sizes = {"vocab_size": 97, "num_attention_heads": 4, "num_key_value_heads": [1, 2], "head_dim": 8}
    config = types.SimpleNamespace(**sizes, num_hidden_layers=2)  # a number for each layer, as some models have it
    reason = refusal(Shape(16, 1024, 0, 32), tiny_model("llama").modules(), config, "cpu")
    assert "not known (TypeError)" in reason


def test_auto_relays_a_large_batch_and_leaves_a_small_one():
    model = relay_hf.patch_model(tiny_model("llama", hidden_size=256, intermediate_size=512, head_dim=64))
    generate(model, prompts(400, [3] * 16), max_new_tokens=2, min_new_tokens=2)
    assert model.relay.last.relayed, model.relay.last
    generate(model, prompts(17, (3, 2)))
    assert "policy 'auto': relaying is expected to cost" in model.relay.last.reason
