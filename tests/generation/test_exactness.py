"""Token for token and logit for logit what stock generate() gives, in float32, with the status that is expected."""

import copy

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of
from tests.support.sizes import FAMILIES
from tests.support.tiny_models import tiny_model

TOLERANCE = 1e-4
RAGGED = (3, 7, 1, 5)
_models = {}


@pytest.fixture(params=FAMILIES)
def model(request):
    """A pair: the stock model, and a patched copy of it."""
    if request.param not in _models:
        stock = tiny_model(request.param)
        _models[request.param] = (stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always"))
    pair = _models[request.param]
    pair[1].relay.clear()
    return pair


class EvenTokensAreDear(LogitsProcessor):
    """Looks at all ids, so that it sees any change of what the loop holds."""

    def __call__(self, input_ids, scores):
        return scores - 0.1 * (input_ids.sum(dim=1, keepdim=True) % 5) * (torch.arange(scores.shape[1]) % 2 == 0)


class SumIsHigh(StoppingCriteria):
    """Stops a row by the sum of its full ids."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -3:].sum(dim=1) > 180


MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.3},
    "return sequences": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 2, "do_sample": True},
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "own processor": {"logits_processor": LogitsProcessorList([EvenTokensAreDear()])},
    "criterion on full ids": {"stopping_criteria": StoppingCriteriaList([SumIsHigh()]), "min_new_tokens": 0},
    "chunked prefill": {"prefill_chunk_size": 4},
}


def run(model, inputs, **options):
    torch.manual_seed(1)
    settings = {"max_new_tokens": 16, "min_new_tokens": 16, "return_dict_in_generate": True, "output_scores": True}
    return model.generate(**inputs, **{**settings, "output_logits": True, **options})


def assert_same(stock, ours):
    assert torch.equal(stock.sequences, ours.sequences)
    assert len(stock.logits) == len(ours.logits)
    for expected, got in zip(stock.logits, ours.logits, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    for expected, got in zip(stock.scores, ours.scores, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=10 * TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_modes(model, mode):
    stock, ours = model
    inputs = prompts(20, RAGGED)
    assert_same(run(stock, inputs, **MODES[mode]), run(ours, inputs, **MODES[mode]))
    report = ours.relay.last
    assert report.relayed, report
    assert report.prefix_length == 20
    assert report.prefix_tokens_reused == 0


@pytest.mark.parametrize("own", [(4, 4, 4), (1, 1), (9, 2, 30), (1, 40)])
def test_own_lengths(model, own):
    stock, ours = model
    inputs = prompts(20, own)
    assert_same(run(stock, inputs), run(ours, inputs))
    assert ours.relay.last.relayed, ours.relay.last


def test_padding_that_all_rows_have(model):
    stock, ours = model
    inputs = {name: torch.nn.functional.pad(value, (3, 0)) for name, value in prompts(20, RAGGED).items()}
    assert_same(run(stock, inputs), run(ours, inputs))
    assert ours.relay.last.relayed, ours.relay.last


def test_a_mask_with_holes_behind_the_prefix(model):
    stock, ours = model
    inputs = prompts(20, (6, 9, 4))
    inputs["attention_mask"][0, -3] = 0
    inputs["attention_mask"][1, -5:-3] = 0
    assert_same(run(stock, inputs), run(ours, inputs))
    assert ours.relay.last.relayed, ours.relay.last


def test_holes_and_chunks(model):
    stock, ours = model
    inputs = prompts(20, (6, 9, 4))
    inputs["attention_mask"][1, -5:-3] = 0
    assert_same(run(stock, inputs, prefill_chunk_size=3), run(ours, inputs, prefill_chunk_size=3))
    assert ours.relay.last.relayed, ours.relay.last


def test_a_hole_inside_the_prefix_ends_it(model):
    stock, ours = model
    inputs = prompts(40, (6, 9, 4))
    inputs["attention_mask"][1, 30] = 0
    assert_same(run(stock, inputs), run(ours, inputs))
    assert ours.relay.last.relayed, ours.relay.last
    assert ours.relay.last.prefix_length < 30


def test_equal_rows(model):
    stock, ours = model
    inputs = prompts(20, (5,))
    inputs = {name: value.repeat(4, 1) for name, value in inputs.items()}
    options = {"do_sample": True}
    assert_same(run(stock, inputs, **options), run(ours, inputs, **options))
    assert ours.relay.last.prefix_length == 24


def test_a_second_call_reuses_the_prefix(model):
    stock, ours = model
    run(ours, prompts(20, RAGGED))
    inputs = prompts(20, (2, 6))
    inputs["input_ids"][:, -1] = 5
    assert_same(run(stock, inputs), run(ours, inputs))
    assert ours.relay.last.relayed, ours.relay.last
    assert ours.relay.last.prefix_tokens_reused == 20
    assert ours.relay.last.prompt_tokens_computed == 8


def test_a_longer_prefix_extends_the_kept_one(model):
    stock, ours = model
    run(ours, prompts(40, RAGGED))
    inputs = prompts(40, RAGGED)
    longer = torch.cat([inputs["input_ids"][:1, 2:42].repeat(3, 1), torch.arange(3, 33).repeat(3, 1)], dim=1)
    inputs = {"input_ids": torch.cat([longer, torch.tensor([[4, 5], [6, 7], [8, 9]])], dim=1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["input_ids"][:, :40] = prompts(40, (1,))["input_ids"][0, :40]
    assert_same(run(stock, inputs), run(ours, inputs))
    report = ours.relay.last
    assert (report.prefix_length, report.prefix_tokens_reused) == (70, 40), report


def test_a_single_row_uses_what_is_kept(model):
    stock, ours = model
    run(ours, prompts(20, RAGGED))
    inputs = prompts(20, (6,), seed=0)
    assert_same(run(stock, inputs), run(ours, inputs))
    assert ours.relay.last.relayed, ours.relay.last


@pytest.mark.parametrize("how", ["as returned", "deep-copied", "as a DynamicCache"])
def test_a_second_turn_on_a_returned_cache(model, how):
    stock, ours = model
    inputs = prompts(20, RAGGED)
    first = [run(m, inputs, eos_token_id=None) for m in (stock, ours)]
    assert_same(*first)
    caches = [cache_of(out) for out in first]
    assert isinstance(caches[1], relay_hf.RelayCache)
    if how == "deep-copied":
        caches[1] = copy.deepcopy(caches[1])
    if how == "as a DynamicCache":
        caches[1] = caches[1].to_dynamic()
    # The second turn is padded on its left, as a tokenizer pads it: holes behind what is cached.
    turn = prompts(0, (4, 9, 2, 6), seed=7)
    input_ids = torch.cat([first[0].sequences, turn["input_ids"]], dim=1)
    attention_mask = torch.cat(
        [inputs["attention_mask"], torch.ones(4, 16, dtype=torch.int64), turn["attention_mask"]], dim=1
    )
    second = [
        run(m, {"input_ids": input_ids, "attention_mask": attention_mask}, **{CACHE: cache})
        for m, cache in zip((stock, ours), caches, strict=True)
    ]
    assert_same(*second)
    assert ours.relay.last.relayed == (how != "as a DynamicCache"), ours.relay.last


def test_cache_by_hand(model):
    stock, ours = model
    inputs = prompts(20, RAGGED)
    cache = relay_hf.RelayCache(ours.config)
    assert_same(run(stock, inputs), run(ours, inputs, **{CACHE: cache}))
    assert ours.relay.last.relayed, ours.relay.last
    assert cache.get_seq_length() == 20 + 7 + 15
