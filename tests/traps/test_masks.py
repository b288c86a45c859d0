"""Masks with holes, and masks that are bidirectional over a prompt: its tokens then see what comes after the prefix."""

from dataclasses import replace

import pytest
import torch

from relay_hf.attention import masks
from relay_hf.generation import eligible_models, lay_out, returned_cache
from relay_hf.model.architectures import ARCHITECTURES
from relay_hf.prefix import Prompts
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.generating import CACHE, cache_of

from .compare import (
    LEAST_WRONG,
    RECENT,
    all_inputs_known,
    assert_relayed,
    assert_untouched,
    assert_wrong,
    error,
    pair,
    run,
    then,
)

RAGGED = prompts(20, (3, 7, 2, 5))
EQUAL = prompts(20, (5, 5, 5))
NEITHER = "neither causal nor a sliding window"


def holes(*places):
    """Prompts of 30 columns, of which row 1 is the longest, with the (row, column)s masked."""
    inputs = prompts(20, (6, 10, 4))
    for row, column in places:
        inputs["attention_mask"][row, column] = 0
    return inputs


BEHIND = {
    "in one row": holes((1, 25)),
    "several": holes((1, 22), (1, 24), (1, 25), (0, 27), (2, 28)),
    "behind one own token": holes((1, 21), (2, 27)),
    "in one column": holes((0, 28), (1, 28), (2, 28)),
}
IN_FRONT = {
    "of one row": holes((1, 1)),
    "of each row": holes((0, 5), (1, 1), (2, 7)),
    "of a row that is padded": holes((0, 5)),
}
# A row keeps one token of its own in front of its first hole.
INSIDE = {"in one row": holes((1, 19)), "in all rows": holes((0, 23), (1, 19), (2, 25))}


@pytest.mark.parametrize("where", BEHIND)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt2"])
def test_holes_behind_the_prefix(model_type, where):
    assert_relayed(pair(model_type), BEHIND[where])


@pytest.mark.parametrize("where", BEHIND)
def test_holes_behind_the_prefix_may_not_be_seen(where, monkeypatch):
    monkeypatch.setattr(lay_out, "own_columns", lambda cache, mask: None)
    assert_wrong(pair("llama"), BEHIND[where])


@pytest.mark.parametrize("where", INSIDE)
def test_a_hole_inside_the_prefix_ends_it(where):
    assert_relayed(pair("llama"), INSIDE[where], prefix=18)


def test_holes_in_front_of_the_prefix_of_all_rows_leave_none():
    assert_untouched(pair("llama"), IN_FRONT["of each row"], "the rows share 0 tokens")


@pytest.mark.parametrize("where", ["of one row", "of a row that is padded"])
def test_a_row_with_a_hole_in_front_of_the_prefix_shares_nothing(where):
    """The others still do."""
    stock, ours = pair("llama")
    assert error(run(stock, IN_FRONT[where]), run(ours, IN_FRONT[where])) <= TOLERANCE
    assert ours.relay.last.reason == "some of the rows start alike"
    assert ours.relay.last.prompt_tokens_saved == 20


def blind_for_holes(monkeypatch):
    read = Prompts.of

    def of(input_ids, attention_mask):
        found = read(input_ids, attention_mask)
        return replace(found, end=torch.full_like(found.end, input_ids.shape[1]))

    monkeypatch.setattr(Prompts, "of", of)


@pytest.mark.parametrize("where", [*INSIDE, *IN_FRONT])
def test_a_hole_in_the_prefix_may_not_be_seen(where, monkeypatch):
    """Two guards: what is shared ends at the first hole, and a prefix of which the mask hides a token is refused."""
    inputs = {**INSIDE, **IN_FRONT}[where]
    blind_for_holes(monkeypatch)
    assert_untouched(pair("llama"), inputs, "attention_mask differs from the padding that this RelayCache was filled")
    monkeypatch.setattr(lay_out, "own_columns", lambda cache, mask: None)
    assert_wrong(pair("llama"), inputs)


def second_turn(models):
    """Its mask hides two tokens of what the first one shared."""
    outputs = []
    for model in models:
        first = run(model, EQUAL, eos_token_id=None)
        turn = then(first, EQUAL)
        turn["attention_mask"][1, 8:10] = 0
        outputs.append(run(model, turn, **{CACHE: cache_of(first)}))
    return error(*outputs)


def test_a_second_turn_that_hides_a_token_of_the_prefix_needs_the_guard(monkeypatch):
    """Which leaves it to stock: `test_a_second_turn_that_masks_the_prefix_goes_on_as_stock` in `test_cache.py`."""
    monkeypatch.setattr(returned_cache, "own_columns", lambda cache, mask: None)
    models = pair("llama")
    assert second_turn(models) > LEAST_WRONG
    assert models[1].relay.last.reason == "a returned cache, continued"


# Their masks are bidirectional by configuration; the first by a function of its own, the others as encoders.
BIDIRECTIONAL = {
    "gemma3_text": {"use_bidirectional_attention": True, "layer_types": ["full_attention"] * 4},
    "bert": {"is_decoder": False},
    "roberta": {"is_decoder": False},
    "electra": {"is_decoder": False},
}


@pytest.mark.parametrize("model_type", BIDIRECTIONAL)
def test_bidirectional_masks_are_untouched(model_type):
    models = pair(model_type, **BIDIRECTIONAL[model_type])
    assert_untouched(models, EQUAL, NEITHER)
    assert_untouched(models, RAGGED, NEITHER)


@pytest.mark.parametrize("model_type", BIDIRECTIONAL)
def test_bidirectional_masks_need_their_guard(model_type, monkeypatch):
    monkeypatch.setattr(masks, "_same_function", lambda one, other: True)
    assert_wrong(all_say_causal(pair(model_type, **BIDIRECTIONAL[model_type])), EQUAL)


def all_say_causal(models):
    """The other guard off: the patched model's modules no longer say that they are not causal."""
    for module in models[1].modules():
        if getattr(module, "is_causal", None) is False:
            module.is_causal = True
    return models


def prefix_lm():
    """The prompt is bidirectional but for its last tokens, by token types and a mask function of the model's own."""
    types = torch.zeros_like(RAGGED["input_ids"])
    types[:, :-2] = RAGGED["attention_mask"][:, :-2]
    return {**RAGGED, "token_type_ids": types}


def test_a_prefix_that_token_types_make_bidirectional_is_untouched():
    models = pair("hrm_text")
    assert_untouched(models, prefix_lm(), "an input that is not relayed, 'token_type_ids'")
    assert_relayed(models, RAGGED)


def test_a_prefix_that_token_types_make_bidirectional_needs_the_guard(monkeypatch):
    all_inputs_known(monkeypatch)
    assert_wrong(pair("hrm_text"), prefix_lm())


# Where no mask says so: without one, stock's sdpa is bidirectional in a module that says it is not causal; and masks of
# a type with attention code of its own are not looked at.
BY_CONFIGURATION = {
    "gemma": {"use_bidirectional_attention": True},
    "megatron-bert": {"is_decoder": False},
    "rembert": {"is_decoder": False},
    "roformer": {"is_decoder": False},
    "gemma4_unified_text": {"use_bidirectional_attention": "all"},
}
# Of those that have a row, this Transformers may be older than what the row is for.
SERVED = [kind for kind in BY_CONFIGURATION if RECENT or kind not in ARCHITECTURES or not ARCHITECTURES[kind].since]


@pytest.mark.parametrize("model_type", SERVED)
def test_attention_that_is_bidirectional_by_configuration_is_untouched(model_type):
    assert_untouched(pair(model_type, **BY_CONFIGURATION[model_type]), EQUAL, "attention is not causal")


@pytest.mark.parametrize("model_type", SERVED)
def test_attention_that_is_bidirectional_by_configuration_needs_the_guard(model_type, monkeypatch):
    models = pair(model_type, **BY_CONFIGURATION[model_type])
    monkeypatch.setattr(eligible_models, "model_refusal", lambda *args: None)
    assert_wrong(models if model_type in ARCHITECTURES else all_say_causal(models), EQUAL)
