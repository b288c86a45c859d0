"""When rows stop: lengths, end tokens, criteria of the caller."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from relay_hf.testing import PAD

from .compare import INPUTS, NEW, assert_relayed, assert_same_error, generate

WIDTH = INPUTS["input_ids"].shape[1]
OFTEN_EOS = list(range(3, 20))


class RowsStopByLastTokens(StoppingCriteria):
    """Stops a row by the sum of its last three tokens, and keeps all that it is shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, input_ids, scores, **kwargs):
        self.shown.append(input_ids.clone())
        return input_ids[:, -3:].sum(dim=1) > 180


LENGTHS = {
    "one new token": ({"max_new_tokens": 1}, 1),
    "total length": ({"max_new_tokens": None, "max_length": WIDTH + 5}, 5),
    "least and most": ({"max_new_tokens": 6, "min_new_tokens": 6}, 6),
}


@pytest.mark.parametrize("mode", LENGTHS)
def test_a_length(pair, mode):
    options, new = LENGTHS[mode]
    output = assert_relayed(pair, lambda model: generate(model, **options))
    assert output.sequences.shape[1] == WIDTH + new


def test_rows_that_end_at_different_times(pair):
    output = assert_relayed(pair, lambda model: generate(model, eos_token_id=OFTEN_EOS, max_new_tokens=16))
    lengths = (output.sequences[:, WIDTH:] != PAD).sum(dim=1)
    assert len(lengths.unique()) > 1


def test_no_end_token(pair):
    output = assert_relayed(pair, lambda model: generate(model, eos_token_id=None))
    assert output.sequences.shape[1] == WIDTH + NEW


def test_a_criterion_is_shown_what_stock_shows_it(pair):
    criteria = []

    def call(model):
        criteria.append(RowsStopByLastTokens())
        return generate(model, stopping_criteria=StoppingCriteriaList(criteria[-1:]))

    assert_relayed(pair, call)
    stocks, cold, kept = [criterion.shown for criterion in criteria]
    for seen in (cold, kept):
        assert all(torch.equal(one, other) for one, other in zip(seen, stocks, strict=True))


def test_no_new_token(pair):
    assert_same_error(pair, lambda model: generate(model, max_new_tokens=0), "`max_new_tokens` must be greater than 0")


def test_a_length_that_the_prompt_has_already(pair):
    options = {"max_new_tokens": None, "max_length": WIDTH - 2}
    assert_same_error(pair, lambda model: generate(model, **options), "Input length")
