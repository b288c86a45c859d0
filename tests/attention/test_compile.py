"""A patched model whose forward torch.compile has compiled: stock's tokens, and no graph more as rows grow."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AttentionInterface

import relay_hf
from relay_hf.attention.interface import relay_attention_forward
from relay_hf.model.attention_choice import ATTENTION_NAME, deselect, select
from relay_hf.model.compiling import compiled_parts, uncompiled_parts
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

RAGGED = (3, 7, 1, 5)


@pytest.fixture(autouse=True)
def no_graphs():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def compile_forward(model, backend="eager"):
    model.forward = torch.compile(model.forward, backend=backend)


def compile_call(model):
    model.compile(backend="eager")


class Graphs:
    """How many graphs, and how many breaks between them, there were after each token."""

    def __init__(self):
        self.counts = []

    def __call__(self, input_ids, scores, **kwargs):
        self.counts.append((counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())))
        return torch.zeros(len(input_ids), dtype=torch.bool)


# Gemma 2 and GPT-OSS have windows. DeepSeek-V3 expands what its cache holds anew in each step. A compiled call holds
# our hooks too.
@pytest.mark.parametrize(
    ("family", "compiled", "whole"),
    [
        ("llama", compile_forward, True),
        pytest.param("gemma2", compile_forward, True, marks=pytest.mark.sweep),
        ("gpt_oss", compile_forward, True),
        pytest.param("deepseek_v3", compile_forward, False, marks=pytest.mark.sweep),
        ("llama", compile_call, False),
    ],
)
def test_tokens_are_stocks_and_growing_rows_compile_nothing(family, compiled, whole):
    model = tiny_model(family)
    inputs, others = prompts(20, RAGGED), prompts(33, (2, 9, 4, 4))
    stock = [generate(copy.deepcopy(model), each) for each in (inputs, others)]
    relay_hf.patch_model(model, policy="always")
    compiled(model)
    calls = []
    for each, expected in zip((inputs, others, inputs), (*stock, stock[0]), strict=True):
        calls.append(Graphs())
        assert torch.equal(generate(model, each, stopping_criteria=[calls[-1]]), expected)
        assert model.relay.last.relayed
    # The first token is the prefill's, the second that of the first decode step.
    prefill, decode, second, *rest = calls[0].counts
    assert prefill == (0, 0), "a prefill runs as it is"
    assert decode[0] > 0
    # Only where a step has breaks between graphs does the second one still show that lengths change.
    assert {second, *rest} == {decode if whole else second}
    assert calls[2].counts == [calls[1].counts[-1]] * 12, "nothing is new in the third call"
    if whole:
        assert (decode[0] - prefill[0], decode[1] - prefill[1]) == (1, 0), "a decode step is one graph"
        assert set(calls[1].counts[1:]) == {calls[1].counts[0]}, "and it serves other batches too"


# Layers that attend to other layers' keys, and one module that several layers run.
@pytest.mark.parametrize("family", ["gemma3n_text", pytest.param("zamba2", marks=pytest.mark.sweep)])
def test_modules_that_do_not_name_the_layer_they_attend_to(family):
    model = tiny_model(family)
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="always")
    compile_forward(model)
    first = generate(model, inputs, return_dict_in_generate=True)
    assert torch.equal(first.sequences, stock)
    assert model.relay.last.relayed
    turn = torch.cat([stock, stock[:, 5:9]], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, turn.shape[1] - 27), value=1)
    second = generate(model, {"input_ids": turn, "attention_mask": mask}, **{CACHE: cache_of(first)})
    assert model.relay.last.relayed
    relay_hf.unpatch_model(model)
    del model.forward
    assert torch.equal(second, generate(model, {"input_ids": turn, "attention_mask": mask}))


def test_attention_that_is_left_out_of_a_graph_stores_what_the_graph_has_not(monkeypatch):
    """As where a part of a forward has reached torch.compile's limit of graphs, and runs as it is."""
    model = tiny_model("llama")
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="always")
    compile_forward(model)
    left_out = torch.compiler.disable(relay_attention_forward)
    monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION_NAME, left_out)
    assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.relayed, model.relay.last


def test_autocast():
    model = tiny_model("qwen3")
    inputs = prompts(20, RAGGED)
    with torch.autocast("cpu", torch.bfloat16):
        stock = generate(model, inputs)
        relay_hf.patch_model(model, policy="always")
        model.forward = torch.compile(model.forward, backend="aot_eager")
        assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.relayed, model.relay.last


def test_inductor():
    model = tiny_model("mistral")
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="always")
    compile_forward(model, "inductor")
    assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.relayed


def test_a_forward_that_is_to_be_one_graph_is_relayed():
    """Its prefill could not be one, and runs as it is."""
    model = tiny_model("llama")
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="always")
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.relayed, model.relay.last
    assert counters["stats"]["unique_graphs"] == 1


def test_a_model_with_many_layers_has_its_steps_compiled():
    """torch.compile makes 8 graphs of a piece of code, and a decorator of Transformers 5.24 is one for all modules."""
    model = tiny_model("llama", num_hidden_layers=12)
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="always")
    compile_forward(model)
    assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.relayed, model.relay.last
    assert (counters["stats"]["unique_graphs"], counters["graph_break"]) == (1, {})


def compile_layers(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")


def test_layers_that_are_compiled_one_by_one_cost_a_prefill_no_graphs():
    """torch.compile makes 8 graphs, one a layer, and runs the other layers as they are; so it does with stock."""
    model = tiny_model("llama", num_hidden_layers=12)
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="always")
    compile_layers(model)
    calls = [layer._compiled_call_impl for layer in model.model.layers]
    counts = Graphs()
    assert torch.equal(generate(model, inputs, stopping_criteria=[counts]), stock)
    assert model.relay.last.relayed, model.relay.last
    assert counts.counts == [(0, 0), *[(8, 0)] * 11]
    assert [layer._compiled_call_impl for layer in model.model.layers] == calls


def test_compiled_layers_are_put_back_by_the_last_prefill_that_set_them_aside():
    model = tiny_model("llama")
    compile_layers(model)
    first, second = model.model.layers
    parts, call = compiled_parts([*model.modules()]), first._compiled_call_impl
    assert parts == [first, second]
    one, two = uncompiled_parts(parts), uncompiled_parts(parts)
    one.__enter__()
    two.__enter__()
    assert first._compiled_call_impl is None
    one.__exit__(None, None, None)
    assert first._compiled_call_impl is None
    second._compiled_call_impl = mine = object()
    two.__exit__(None, None, None)
    assert (first._compiled_call_impl, second._compiled_call_impl) == (call, mine)


def test_a_call_that_stock_runs_while_another_thread_compiles():
    """`torch.compiler.is_compiling()` is true in all threads then, and another call may have selected our attention."""
    model = tiny_model("llama")
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="off")
    select([model.config], holder := object())
    try:
        with torch.compiler._compile_session_context():
            assert torch.equal(generate(model, inputs), stock)
    finally:
        deselect([model.config], holder)
    assert not model.relay.last.relayed
