"""Tokens of compiled steps are stock's, whatever the call; and one graph serves all calls of several rows."""

import copy

import pytest
import torch
from transformers.pytorch_utils import Conv1D

import relay_hf
from relay_hf.testing import prompts
from tests.support.fast_decode import FastLlama
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

RAGGED = (3, 7, 1, 5)
CALLS = [
    ({}, prompts(20, RAGGED)),
    ({}, prompts(33, (2, 9), seed=1)),
    ({}, prompts(26, (4,) * 16, seed=2)),
    ({"num_beams": 2}, prompts(20, RAGGED)),
    ({"do_sample": True, "num_return_sequences": 3}, prompts(20, (3, 3), seed=4)),
    ({"max_new_tokens": 40, "min_new_tokens": 40}, prompts(20, RAGGED)),
    ({}, prompts(40, (5,) * 7, seed=5)),
]
ROW = ({}, prompts(20, (2,)))  # a single row, whose prefix is kept


def run(model, options, inputs):
    torch.manual_seed(0)
    return generate(model, inputs, **options)


def check_calls(model, calls):
    """The compilations of each call."""
    stock, seconds = copy.deepcopy(model), []
    relay_hf.patch_model(model, policy="always", compile=True)
    for options, inputs in calls:
        assert torch.equal(run(model, options, inputs), run(stock, options, inputs)), (options, inputs)
        report = model.relay.last
        assert (report.relayed, report.compile_reason) == (True, ""), report
        assert report.compiled_steps == options.get("max_new_tokens", 12) - 1
        seconds.append(report.compile_seconds)
    return seconds


def test_one_compilation_serves_all_rows_prefixes_lengths_and_modes(no_graphs):
    model = tiny_model("llama")
    first, *others = check_calls(model, CALLS)
    assert first > 0
    assert (others, no_graphs["unique_graphs"]) == ([0.0] * len(others), 1)
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert model.relay.last.compile_bytes == sum(weight.nbytes for weight in linear)


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_single_rows_have_a_graph_of_their_own(traced, first):
    """torch.compile takes a size of one for a constant."""
    calls = [ROW, CALLS[1], ROW, CALLS[2]] if first else [CALLS[0], ROW, CALLS[2], ROW]
    seconds = check_calls(tiny_model("llama"), calls)
    assert [each > 0 for each in seconds] == [True, True, False, False]
    assert traced() == 2


# Windows; sinks and experts; weights that lie the other way, with biases, and tied embeddings.
@pytest.mark.parametrize("family", ["gemma2", pytest.param("gpt_oss", marks=pytest.mark.sweep), "gpt2"])
def test_other_families(traced, family):
    model = tiny_model(family)
    check_calls(model, CALLS[:3])
    assert traced() == 1
    linear = {module.weight for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    assert model.relay.last.compile_bytes >= sum(weight.nbytes for weight in linear)  # routers have weights too


@pytest.mark.sweep
def test_half_precision_is_as_close_to_float32_as_stocks(no_graphs):
    """The factor is for what one rounding more or less in a step does to the maximum of all logits."""
    exact, inputs = tiny_model("llama"), prompts(20, RAGGED)
    forced = {"return_dict_in_generate": True, "output_logits": True, "prefix_allowed_tokens_fn": lambda row, ids: [7]}
    halves = [copy.deepcopy(exact).bfloat16() for _ in range(2)]
    relay_hf.patch_model(halves[1], policy="always", compile=True)
    logits = [torch.stack(generate(model, inputs, **forced).logits).float() for model in (exact, *halves)]
    report = halves[1].relay.last
    assert (report.compiled_steps, report.compile_bytes > 0) == (11, True), report.compile_reason
    stocks, ours = ((each - logits[0]).abs().max() for each in logits[1:])
    assert ours <= 1.5 * stocks


def test_a_next_turn_on_a_returned_cache(traced):
    model = tiny_model("llama")
    inputs = prompts(20, RAGGED)

    def talk():
        first = generate(model, inputs, return_dict_in_generate=True)
        turn = torch.cat([first.sequences, first.sequences[:, 5:9]], dim=1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, turn.shape[1] - 27), value=1)
        return generate(model, {"input_ids": turn, "attention_mask": mask}, **{CACHE: cache_of(first)})

    stock = talk()
    relay_hf.patch_model(model, policy="always", compile=True)
    assert torch.equal(talk(), stock)
    assert (model.relay.last.relayed, model.relay.last.compiled_steps, traced()) == (True, 11, 1)


def test_a_model_that_takes_another_way_for_one_query_is_run_again_as_stock(traced):
    stock = FastLlama.tiny()
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", compile=True)
    inputs = prompts(20, RAGGED)
    for _ in range(2):
        assert torch.equal(generate(ours, inputs), generate(stock, inputs))
        assert not ours.relay.last.relayed
        assert "layers [0, 1] did not" in ours.relay.last.reason
