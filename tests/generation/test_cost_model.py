"""The gate of policy="auto" says yes and no where measurements did."""

import types
from dataclasses import replace

import pytest
import torch

import relay_hf
from relay_hf.generation.cost_model import Machine, ModelCost, Shape, expected_gain, judge, run_gain
from relay_hf.testing import VOCABULARY, prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

C1 = ModelCost(parameters=85_000_000, itemsize=4, layers=12, kv_bytes=6144)
TWO_CORES = Machine(flops=4e11, bandwidth=2e10, layer_overhead=1.2e-4)
LLAMA_3_8B = ModelCost(parameters=7_000_000_000, itemsize=2, layers=32, kv_bytes=4096)
H200 = Machine(9.9e14, 4.8e12, 4e-4, 0.6e-3, layer_device=1e-4, replayed_overhead=3e-5, layer_capture=5e-3)


@pytest.mark.parametrize(
    ("shape", "pays"),
    [
        (Shape(rows=1, new=1, runs=((64, 1, True),)), True),
        (Shape(rows=1, new=256, runs=((64, 1, True),)), False),
        (Shape(rows=1, new=32, keeping=64), False),
        (Shape(rows=1, new=256, runs=((512, 1, True),)), True),
        (Shape(rows=1, new=32, keeping=512), True),
        (Shape(rows=2, new=256, runs=((16, 2, False),), forwards=1), False),
        (Shape(rows=4, new=32, runs=((64, 4, False),), forwards=1), True),
        (Shape(rows=16, new=128, runs=((1024, 16, False),), forwards=1), True),
    ],
)
def test_where_it_pays(shape, pays):
    assert (expected_gain(shape, C1, TWO_CORES) > 0) == pays


@pytest.mark.parametrize(
    ("shape", "pays"),
    [
        (
            Shape(rows=1, new=32, runs=((1024, 1, False),), forwards=1),
            False,
        ),  # nothing is shared: another pass, host time
        (Shape(rows=4, new=128, runs=((512, 4, False),), forwards=1), False),  # the host is what decoding waits for
        (
            Shape(rows=32, new=128, runs=((2048, 32, False),), forwards=1),
            False,
        ),  # 1.7 s of prefill for as much host time
        (Shape(rows=32, new=128, runs=((2048, 32, False),), forwards=1, replayed=True), True),
        (Shape(rows=128, new=512, runs=((8192, 128, True),)), True),  # 400 GB a step of stock
        (Shape(rows=4, new=128, runs=((512, 4, False),), forwards=1, replayed=True), True),  # nothing waits for it
        (Shape(rows=1, new=128, keeping=64, replayed=True), True),
        (Shape(rows=1, new=8, keeping=64, replayed=True), False),  # the capture is what it costs
    ],
)
def test_where_it_is_expected_to_pay_on_a_gpu(shape, pays):
    """As `benchmarks.gpu` found it, in its section "gate"."""
    assert (expected_gain(shape, LLAMA_3_8B, H200) > 0) == pays


def test_forwards_for_groups_of_rows_count():
    """Rows of a recurrent model that all differ in length go through it one by one."""
    shape = Shape(rows=4, new=32, runs=((64, 4, False),), forwards=1)
    assert expected_gain(shape, C1, TWO_CORES) > 0
    assert expected_gain(replace(shape, passes=40), C1, TWO_CORES) < 0


def test_attention_code_of_the_models_own_costs_host_time():
    shape = Shape(rows=16, new=32, runs=((1024, 16, False),), forwards=1)
    through_the_operator, own = (expected_gain(replace(shape, own_code=each), C1, TWO_CORES) for each in (False, True))
    assert through_the_operator > own > 0
    assert expected_gain(Shape(rows=4, new=256, runs=((64, 4, True),), own_code=True), C1, TWO_CORES) < 0


@pytest.mark.parametrize(("model_type", "passes"), [("mamba2", 3), ("mamba", 3 + 7 + 2), ("bamba", 3)])
def test_what_recurrent_models_cost_is_known(model_type, passes, monkeypatch):
    model, seen = relay_hf.patch_model(tiny_model(model_type), policy="auto"), []
    monkeypatch.setattr(relay_hf.generation.cost_model, "expected_gain", lambda *args: seen.append(args) or 1.0)
    generate(model, prompts(20, (3, 7, 2, 3)))
    (shape, cost, _), *_ = seen
    assert shape.passes == passes
    assert (cost.kv_bytes > 0) == (model_type == "bamba")
    assert model.relay.last.relayed, model.relay.last


def test_a_machine_is_read_off_the_device():
    cpu = Machine.of(torch.device("cpu"), torch.float32)
    assert cpu.flops == 2e11 * torch.get_num_threads()
    assert Machine.of(torch.device("meta"), torch.float32) is None
    model = tiny_model("llama")
    reason = judge(
        Shape(16, 32, ((1024, 16, False),), 1), model.modules(), model.config, torch.device("meta"), torch.float32
    ).refused
    assert "what calls cost on meta is not known" in reason


def test_a_kind_of_gpu_without_a_committed_result_is_left_to_stock(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(relay_hf.generation.cost_model, "MEASURED", frozenset())
    device, call = torch.device("cuda"), Shape(rows=128, new=512, runs=((8192, 128, True),))
    machine = Machine.of(device, torch.bfloat16)
    assert machine == H200
    assert Machine.of(device, torch.float32).flops < machine.flops / 10
    model = tiny_model("llama")
    reason = judge(call, model.modules(), model.config, device, torch.bfloat16).refused
    assert "not been measured on this kind of GPU yet" in reason
    monkeypatch.setattr(relay_hf.generation.cost_model, "MEASURED", {9})
    assert "expected to cost" in judge(call, model.modules(), model.config, device, torch.bfloat16).refused


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
    reason = judge(
        Shape(16, 32, ((1024, 16, False),), 1),
        tiny_model("llama").modules(),
        config,
        torch.device("cpu"),
        torch.float32,
    ).refused
    assert "not known (TypeError)" in reason


def test_auto_relays_a_large_batch_and_leaves_a_small_one():
    model = relay_hf.patch_model(tiny_model("llama", hidden_size=256, intermediate_size=512, head_dim=64))
    generate(model, prompts(400, [3] * 16), max_new_tokens=2, min_new_tokens=2)
    assert model.relay.last.relayed, model.relay.last
    generate(model, prompts(17, (3, 2)))
    assert "policy 'auto': relaying is expected to cost" in model.relay.last.reason


C1_COST = ModelCost(parameters=85_000_000, itemsize=4, layers=12, kv_bytes=6144)
TWO_CORES = Machine(flops=4.0e11, bandwidth=2.0e10, layer_overhead=1.2e-4)


def test_a_run_pays_by_tokens_ways_and_steps():
    """256 tokens that four rows share, as in workload C5, against a few that two do."""
    assert run_gain(256, 4, False, 32, C1_COST, TWO_CORES) > 0.2
    assert run_gain(16, 2, False, 1, C1_COST, TWO_CORES) < 0
    gains = [run_gain(64, ways, False, 32, C1_COST, TWO_CORES) for ways in (2, 4, 8)]
    assert gains == sorted(gains)


def test_runs_of_some_rows_count_in_a_call():
    alone = expected_gain(Shape(16, 32, ((512, 16, False),), 1), C1_COST, TWO_CORES)
    groups = Shape(16, 32, ((512, 16, False), *((256, 4, False),) * 4), 2)
    assert expected_gain(groups, C1_COST, TWO_CORES) > alone + 0.5
    pairs = Shape(16, 32, ((1055, 8, False),) * 2, 1)
    assert expected_gain(pairs, C1_COST, TWO_CORES) > 10
    tiny = Shape(4, 32, ((16, 2, False),) * 2, 1)
    assert expected_gain(tiny, ModelCost(10_000, 4, 2, 256), TWO_CORES) < 0
