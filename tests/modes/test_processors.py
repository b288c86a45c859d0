"""Logits processors and sampling filters that generate() builds from its options."""

import pytest
import torch
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

from .compare import INPUTS, assert_relayed, generate

MANY = list(range(3, 50))

PROCESSORS = {
    "repetition penalty": {"repetition_penalty": 1.4},
    "encoder repetition penalty": {"encoder_repetition_penalty": 1.4},
    "n-grams once": {"no_repeat_ngram_size": 1},
    "n-grams of the prompt": {"encoder_no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[token] for token in MANY] + [[60, 61]]},
    "sequence bias": {"sequence_bias": {(5,): 2.0, (8, 9): -3.0}},
    "suppressed tokens": {"suppress_tokens": MANY},
    "suppressed at first": {"begin_suppress_tokens": MANY},
    "forced last token": {"forced_eos_token_id": 7},
    "ever more eos": {"exponential_decay_length_penalty": (2, 1.5)},
    "least length": {"min_length": 32, "eos_token_id": MANY},
    "least new tokens": {"min_new_tokens": 4, "eos_token_id": MANY},
    "renormalized": {"renormalize_logits": True},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="lefthash")},
    "self-hashed watermark": {"watermarking_config": WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")},
    "several": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[5]], "min_length": 32},
}

# Nothing in these prompts calls for them: they must not stand in the way.
IDLE = {"forced first token": {"forced_bos_token_id": 7}, "invalid values": {"remove_invalid_values": True}}

FILTERS = {
    "temperature": {"temperature": 0.5},
    "top k": {"top_k": 5},
    "top p": {"top_p": 0.5},
    "min p": {"min_p": 0.2},
    "top h": {"top_h": 0.4},
    "typical p": {"typical_p": 0.5},
    "epsilon cut-off": {"epsilon_cutoff": 0.02},
    "eta cut-off": {"eta_cutoff": 0.02},
    "several": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "SynthID": {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=5, keys=[654, 400, 836, 123, 340])},
}


def assert_bites(output):
    """The processor changed what the model said, so that equal scores mean something."""
    pairs = zip(output.scores, output.logits, strict=True)
    assert any(not torch.equal(scores, logits) for scores, logits in pairs)


@pytest.mark.parametrize("mode", PROCESSORS)
def test_a_processor_is_relayed(pair, mode):
    assert_bites(assert_relayed(pair, lambda model: generate(model, **PROCESSORS[mode])))


@pytest.mark.parametrize("mode", IDLE)
def test_an_idle_processor_is_relayed(pair, mode):
    assert_relayed(pair, lambda model: generate(model, **IDLE[mode]))


@pytest.mark.parametrize("mode", FILTERS)
def test_a_sampling_filter_is_relayed(pair, mode):
    options = {"do_sample": True, "top_k": 0, **FILTERS[mode]}
    assert_bites(assert_relayed(pair, lambda model: generate(model, **options)))


@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_allowed_by_a_function_of_the_ids_so_far(pair, beams):
    asked = []

    def allowed(row, ids):
        asked[-1].append((row, tuple(ids.tolist())))
        return [3 + row, 10, 40, int(ids[-1])]

    def call(model):
        asked.append([])
        return generate(model, num_beams=beams, prefix_allowed_tokens_fn=allowed)

    assert_bites(assert_relayed(pair, call, rows=4 * beams))
    stocks, cold, kept = asked
    assert stocks == cold == kept
    assert stocks[0] == (0, tuple(INPUTS["input_ids"][0].tolist()))
