"""Modes that read text, and so are given the tokenizer: stop strings, token healing."""

import pytest
import torch

from relay_hf.testing import PAD

from .compare import INPUTS, ONE, PREFIX, assert_relayed, assert_relayed_alone, assert_same, generate, seeded

WIDTH = INPUTS["input_ids"].shape[1]
STOPS = {"stop_strings": ["1", "7"], "max_new_tokens": 12}  # in a third of the words

MODES = {
    "stop strings": STOPS,
    "stop strings, sampling": {**STOPS, "do_sample": True},
    "stop strings, beams": {**STOPS, "num_beams": 2},
    "token healing": {"token_healing": True},
    "a tokenizer that nothing reads": {},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_output_is_stocks(pair, tokenizer, mode):
    stock, ours = pair
    expected = seeded(lambda model: generate(model, tokenizer=tokenizer, **MODES[mode]), stock)
    for _ in range(2):
        assert_same(seeded(lambda model: generate(model, tokenizer=tokenizer, **MODES[mode]), ours), expected)
    if "stop_strings" in MODES[mode] and "num_beams" not in MODES[mode]:
        new = expected.sequences[:, WIDTH:]
        assert new.shape[1] < 12 or (new == PAD).any()  # a row stopped before the others
    assert torch.equal(expected.sequences[:, : WIDTH - 1], INPUTS["input_ids"][:, :-1])  # healing changes last words


@pytest.mark.parametrize("mode", ["stop strings", "stop strings, beams", "token healing"])
def test_it_is_relayed(pair, tokenizer, mode):
    rows = 4 * MODES[mode].get("num_beams", 1)
    before = PREFIX if mode == "token healing" else 0  # which generates for each row by itself, first
    assert_relayed(pair, lambda model: generate(model, tokenizer=tokenizer, **MODES[mode]), rows=rows, before=before)


def test_stop_strings_of_a_single_row_are_relayed(pair, tokenizer):
    assert_relayed_alone(pair, lambda model: generate(model, ONE, tokenizer=tokenizer, **STOPS))
