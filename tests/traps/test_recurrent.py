"""Recurrent layers see every token that they are fed, padding too, and go on from the state that they find."""

from dataclasses import replace

import peft
import pytest
import torch

from relay_hf.cache_utils import state_layer
from relay_hf.generation import eligibility, eligible_models, prefill_hook, sharing
from relay_hf.model.architectures import ARCHITECTURES
from relay_hf.prefix import shared_runs
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.generating import CACHE, cache_of
from tests.support.tiny_models import tiny_model

from .compare import (
    RECENT,
    assert_relayed,
    assert_untouched,
    assert_wrong,
    beside_a_patched_copy,
    error,
    pair,
    run,
    then,
)

RAGGED = prompts(20, (3, 7, 2, 5))
EQUAL = prompts(20, (5, 5, 5))
HOLES = prompts(20, (6, 9, 4))
HOLES["attention_mask"][1, -5:-3] = 0
# Linear attention, state spaces, short convolutions; with attention in other layers, in the same layer, and without.
SPLIT = ["qwen3_next", "kimi_linear", "bamba", "mamba2", "falcon_h1", "zamba2", "nemotron_h", "lfm2"]
# Those whose code for several tokens starts from zero.
STEPS = ["mamba", "falcon_mamba", "jamba", "zamba"]


@pytest.mark.parametrize("model_type", [*SPLIT, *STEPS])
def test_rows_start_from_the_shared_state(model_type):
    assert_relayed(pair(model_type), RAGGED)


def with_gaps(call, asked, cache, shared):
    """All rows in one go, as models without recurrent layers run: with their padding before their own tokens."""
    return prefill_hook.forward_rows(call.facts, asked.input_ids, asked.inputs, cache, cache.rows.offset, asked.chunk)


@pytest.mark.parametrize("model_type", SPLIT)
def test_a_pad_between_prefix_and_own_tokens_is_seen(model_type, monkeypatch):
    monkeypatch.setattr(prefill_hook, "forward_by_length", with_gaps)
    assert_wrong(pair(model_type), RAGGED)


def test_without_a_pad_there_is_no_gap(monkeypatch):
    """What makes the difference above is the padding alone."""
    monkeypatch.setattr(prefill_hook, "forward_by_length", with_gaps)
    assert_relayed(pair("qwen3_next"), EQUAL)


@pytest.mark.parametrize("model_type", STEPS)
def test_several_tokens_at_once_start_from_zero(model_type, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, model_type, replace(ARCHITECTURES[model_type], recurrent="split"))
    assert_wrong(pair(model_type), EQUAL)


def test_so_does_a_chunk_of_a_prefill(monkeypatch):
    models = pair("jamba")
    assert_untouched(models, EQUAL, "chunked prefill", prefill_chunk_size=4)
    monkeypatch.setattr(eligibility, "state_refusal", lambda *args: None)
    assert_wrong(models, EQUAL, prefill_chunk_size=4)


# Stock zeroes padding before the projection into a convolution: a bias there is what the first tokens then see.
PROJECTIONS = {
    "mamba": "use_bias",
    "mamba2": "use_bias",
    "bamba": "mamba_proj_bias",
    "lfm2": "conv_bias",
    "nemotron_h": "use_bias",
}


def with_biases(model_type):
    stock = tiny_model(model_type, **{PROJECTIONS[model_type]: True})
    for name, parameter in stock.named_parameters():
        if name.endswith("in_proj.bias"):
            torch.nn.init.normal_(parameter)
    return beside_a_patched_copy(stock)


@pytest.mark.parametrize("model_type", PROJECTIONS)
def test_padding_before_a_biased_projection_is_untouched(model_type):
    models = with_biases(model_type)
    assert_untouched(models, RAGGED, "padding, which a projection with a bias shows to the convolutions")
    assert_relayed(models, EQUAL)


def test_a_projection_inside_an_adapter_is_seen():
    stock, _ = with_biases("mamba2")
    config = peft.LoraConfig(target_modules=["in_proj"], init_lora_weights=False)
    adapted = peft.inject_adapter_in_model(config, stock).eval()
    assert_untouched(beside_a_patched_copy(adapted), RAGGED, "padding, which a projection with a bias shows")


@pytest.mark.parametrize("model_type", PROJECTIONS)
def test_padding_before_a_biased_projection_needs_the_guard(model_type, monkeypatch):
    monkeypatch.setattr(eligibility, "_shows_padding", lambda module: False)
    assert_wrong(with_biases(model_type), RAGGED)


@pytest.mark.parametrize("model_type", ["mamba", "qwen3_next"])
def test_a_type_that_is_not_known_to_split_is_untouched(model_type, monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, model_type)
    reason = f"recurrent layers of type {model_type!r} are not known to go on from a shared state"
    assert_untouched(pair(model_type), EQUAL, reason)


def test_a_type_that_is_not_known_to_split_needs_the_guard(monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, "mamba")
    monkeypatch.setattr(eligible_models, "recurrent_refusal", lambda *args: None)
    assert_wrong(pair("mamba"), EQUAL)


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "qwen3_next", "falcon_h1"])
def test_holes_are_untouched(model_type):
    assert_untouched(pair(model_type), HOLES, "a mask with holes, which recurrent layers see as tokens")


@pytest.mark.parametrize("model_type", ["mamba", "mamba2"])
def test_holes_need_the_guard(model_type, monkeypatch):
    monkeypatch.setattr(eligibility, "state_refusal", lambda *args: None)
    assert_wrong(pair(model_type), HOLES)


def test_a_state_outside_of_the_cache_is_untouched():
    assert_untouched(pair("recurrent_gemma"), EQUAL, "keeps its recurrent state outside of the cache")


def test_a_state_outside_of_the_cache_needs_its_row(monkeypatch):
    """Behind it stand the guard of unknown recurrent layers and, with an older cache, that of layers without a hit."""
    monkeypatch.delitem(ARCHITECTURES, "recurrent_gemma")
    models = pair("recurrent_gemma")
    assert_untouched(models, EQUAL, "go on from a shared state" if RECENT else "layers [0] did not")
    monkeypatch.setattr(eligible_models, "recurrent_refusal", lambda *args: None)
    if RECENT:
        assert_wrong(models, EQUAL)
    else:
        assert_untouched(models, EQUAL, "layers [0] did not")


@pytest.mark.parametrize("model_type", ["qwen3_next", "mamba", "lfm2"])
def test_a_row_may_not_write_into_the_state_that_is_shared(model_type, monkeypatch):
    """Each row starts from a copy. Here every row is a group of its own, and could do without one."""
    monkeypatch.setattr(state_layer, "_repeated", lambda tensor, rows: tensor.expand(rows, *tensor.shape[1:]))
    assert_wrong(pair(model_type), RAGGED)


ONE_TOKEN = prompts(20, (1, 1, 1))


@pytest.mark.parametrize("model_type", ["zamba2", "nemotron_h"])
def test_rows_keep_two_tokens_of_their_own(model_type):
    assert_relayed(pair(model_type), ONE_TOKEN, prefix=19)


@pytest.mark.parametrize("model_type", ["zamba2", "nemotron_h"])
def test_a_single_own_token_runs_through_other_code(model_type, monkeypatch):
    """The code of decode steps is off by little, but by more than rounding."""
    monkeypatch.setattr(sharing, "shared_runs", lambda prompts, own: shared_runs(prompts, own=1))
    stock, ours = pair(model_type)
    assert error(run(stock, ONE_TOKEN), run(ours, ONE_TOKEN)) > TOLERANCE
    assert ours.relay.last.prefix_length == 20


@pytest.mark.parametrize("model_type", ["qwen3_next", "mamba2", "jamba"])
def test_a_kept_state_is_not_cut_back(model_type):
    """What the state was 20 tokens into the 30 that are kept is not known: they are prefilled again."""
    stock, ours = pair(model_type)
    longer = prompts(30, (1,))["input_ids"][0, :30]
    ours.relay.warm(longer)
    inputs = {name: value.clone() for name, value in EQUAL.items()}
    inputs["input_ids"][:, :20] = longer[:20]
    assert error(run(stock, inputs), run(ours, inputs)) <= TOLERANCE
    report = ours.relay.last
    assert (report.relayed, report.prefix_length, report.prefix_tokens_reused) == (True, 20, 0), report


@pytest.mark.parametrize("model_type", ["qwen3_next", "falcon_h1"])
def test_a_second_turn_with_holes(model_type):
    """On a returned cache, rows have the same columns as stock's from there on: padding is seen, by both alike."""
    outputs = []
    for model in pair(model_type):
        first = run(model, RAGGED, eos_token_id=None)
        turn = then(first, RAGGED)
        turn["attention_mask"][0, -4:-2], turn["attention_mask"][2, -4] = 0, 0
        outputs.append(run(model, turn, **{CACHE: cache_of(first)}))
    assert error(*outputs) <= TOLERANCE
    assert (model.relay.last.relayed, model.relay.last.reason) == (True, "a returned cache, continued")
