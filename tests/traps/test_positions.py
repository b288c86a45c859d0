"""Where a token's position comes from: columns, ids, or generate(); and positions of the caller's own."""

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from relay_hf.cache_utils import RowLayout
from relay_hf.generation import decide, eligibility, prefix_prefill
from relay_hf.model.architectures import ARCHITECTURES
from relay_hf.testing import prompts

from . import images
from .compare import RECENT, assert_relayed, assert_untouched, assert_wrong, pair

RAGGED = prompts(20, (3, 7, 1, 5))
EQUAL = prompts(20, (5, 5, 5))
PADDED_ALIKE = {name: torch.nn.functional.pad(value, (3, 0)) for name, value in EQUAL.items()}
COUNTED = (RAGGED["attention_mask"].cumsum(-1) - 1).masked_fill(RAGGED["attention_mask"] == 0, 0)
COLUMNS = "the model counts columns, and rows are padded"
GIVEN = "position_ids were given by the caller"
NUMBERS = "attention_mask has other values than 0 and 1"


def no_guard(monkeypatch):
    monkeypatch.setattr(eligibility, "position_refusal", lambda *args: None)


# They count their positions from the padding token's id on, in the tokens that a forward has.
ROBERTAS = ["roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "data2vec-text", "roberta-prelayernorm", "xmod"]


@pytest.mark.parametrize("model_type", ROBERTAS)
def test_the_roberta_family_is_relayed(model_type):
    assert_relayed(pair(model_type), RAGGED)


@pytest.mark.parametrize("model_type", ROBERTAS)
def test_the_roberta_family_needs_positions_for_its_prefix(model_type, monkeypatch):
    fill = prefix_prefill.prefill_tree

    def without_positions(call, runs, held, inputs, *args):
        return fill(call, runs, held, set(inputs) - {"position_ids"}, *args)

    monkeypatch.setattr(prefix_prefill, "prefill_tree", without_positions)
    assert_wrong(pair(model_type), RAGGED)


# BART's kin take no positions; the last two do, and count columns all the same.
COUNTING = ["bart", "mbart", "pegasus", "marian", "blenderbot", "trocr", "git", "llama4_text"]


@pytest.mark.parametrize("model_type", COUNTING)
def test_a_model_that_counts_columns_is_relayed_at_one_length(model_type):
    models = pair(model_type)
    assert_relayed(models, EQUAL)
    assert_untouched(models, PADDED_ALIKE, COLUMNS)
    assert_untouched(models, RAGGED, COLUMNS)


# An older GIT takes the positions that it is given.
STRICTLY = COUNTING if RECENT else [kind for kind in COUNTING if kind != "git"]


@pytest.mark.parametrize("model_type", STRICTLY)
def test_a_model_that_counts_columns_needs_its_guard(model_type, monkeypatch):
    no_guard(monkeypatch)
    assert_wrong(pair(model_type), RAGGED)


@pytest.mark.parametrize("model_type", sorted({"git", "llama4_text"} & {*STRICTLY}))
def test_a_model_that_takes_positions_and_counts_columns_needs_its_row(model_type, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, model_type, replace(ARCHITECTURES[model_type], positions="given"))
    assert_wrong(pair(model_type), RAGGED)


def shuffled():
    generator = torch.Generator().manual_seed(0)
    return COUNTED[:, torch.randperm(27, generator=generator)]


COLUMNS_OVER_HOLES = prompts(20, (6, 6, 6))
COLUMNS_OVER_HOLES["attention_mask"][1, 22] = 0


def test_a_model_that_takes_no_positions_counts_columns_over_holes_too():
    assert_relayed(pair("bart"), COLUMNS_OVER_HOLES)


@pytest.mark.parametrize("model_type", ["git", "llama4_text"])
def test_a_model_that_takes_positions_and_counts_columns_is_untouched_over_holes(model_type):
    """GIT takes the positions of its prompt's first forward alone. Unlike columns, they leave out the hole."""
    assert_untouched(pair(model_type), COLUMNS_OVER_HOLES, "a mask with holes leaves some out")


def test_positions_over_holes_need_their_guard(monkeypatch):
    no_guard(monkeypatch)
    check = assert_wrong if RECENT else assert_relayed  # an older GIT takes the positions of each forward
    check(pair("git"), COLUMNS_OVER_HOLES)


OWN_POSITIONS = {
    "shifted": COUNTED + 3,
    "shifted in one row": COUNTED + torch.tensor([[0], [0], [2], [0]]),
    "twice as far apart": 2 * COUNTED,
    "backwards": COUNTED.flip(1),
    "shuffled": shuffled(),
    "of columns": torch.arange(27).repeat(4, 1),
    "another behind the prefix": COUNTED + (torch.arange(27) >= 25) * 7,
}


@pytest.mark.parametrize("what", OWN_POSITIONS)
def test_positions_of_the_caller_are_untouched(what):
    assert_untouched(pair("llama"), RAGGED, GIVEN, position_ids=OWN_POSITIONS[what])


# Not those that are shifted alike: rotary embeddings see distances. Learned ones do not.
@pytest.mark.parametrize("what", OWN_POSITIONS)
def test_positions_of_the_caller_need_their_guard(what, monkeypatch):
    no_guard(monkeypatch)
    assert_wrong(pair("gpt2"), RAGGED, position_ids=OWN_POSITIONS[what])


def test_the_positions_that_generate_counts_are_relayed():
    assert_relayed(pair("gpt2"), RAGGED, position_ids=COUNTED)
    assert_relayed(pair("gpt2"), EQUAL, position_ids=torch.arange(25).repeat(3, 1))


def test_the_positions_that_generate_counts_over_holes_are_relayed():
    inputs = {name: value.clone() for name, value in RAGGED.items()}
    inputs["attention_mask"][1, -5:-3] = 0
    counted = (inputs["attention_mask"].cumsum(-1) - 1).masked_fill(inputs["attention_mask"] == 0, 0)
    assert_relayed(pair("gpt2"), inputs, position_ids=counted)
    assert_untouched(pair("gpt2"), inputs, GIVEN, position_ids=COUNTED)


def test_a_model_that_drops_its_positions_is_relayed_at_one_length():
    assert_relayed(images.exaone4_5(), EQUAL)


def test_a_model_that_drops_its_positions_is_untouched_under_padding():
    assert_untouched(images.exaone4_5(), RAGGED, COLUMNS)


def test_a_model_that_drops_its_positions_is_untouched_under_padding_also_if_that_shows_in_the_prefill(monkeypatch):
    monkeypatch.setattr(decide, "takes_positions", lambda *asked: True)
    assert_untouched(images.exaone4_5(), RAGGED, COLUMNS)


def test_a_model_that_drops_its_positions_needs_the_guards(monkeypatch):
    monkeypatch.setattr(decide, "takes_positions", lambda *asked: True)
    monkeypatch.setattr(RowLayout, "padded", False)
    assert_wrong(images.exaone4_5(), RAGGED)


def test_positions_that_a_model_does_not_take_change_nothing():
    """BART's kin accept them among what they leave aside, and count columns."""
    models = pair("bart")
    assert_untouched(models, RAGGED, COLUMNS, position_ids=COUNTED)
    assert_relayed(models, EQUAL, position_ids=torch.arange(25).repeat(3, 1))


@pytest.mark.parametrize("columns", [1, 40])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_positions_of_another_width_are_untouched(model_type, columns):
    """Stock takes the last ones, or one for all."""
    assert_untouched(pair(model_type), EQUAL, GIVEN, position_ids=torch.arange(columns)[None])


def test_positions_of_one_row_for_all_are_untouched():
    models = pair("gpt2")
    assert_untouched(models, RAGGED, GIVEN, position_ids=torch.arange(27)[None])
    assert_relayed(models, RAGGED)


SEGMENTS = {**EQUAL, "attention_mask": EQUAL["attention_mask"] + (torch.arange(25) >= 12)}  # two, packed in a row


@pytest.mark.parametrize("model_type", ["llama", "bloom", "mamba2"])
def test_a_mask_of_other_numbers_than_0_and_1_is_untouched(model_type):
    """Stock sums the mask up: of twos, a prefix alone would be put at half of its positions. Mamba multiplies by it."""
    models = pair(model_type)
    assert_untouched(models, SEGMENTS, NUMBERS)
    assert_untouched(models, {**EQUAL, "attention_mask": 2 * EQUAL["attention_mask"]}, NUMBERS)


@pytest.mark.parametrize("model_type", ["bloom", "mamba2"])
def test_a_mask_of_other_numbers_than_0_and_1_needs_its_guard(model_type, monkeypatch):
    monkeypatch.setattr(eligibility, "_has_numbers", lambda mask: False)
    assert_wrong(pair(model_type), SEGMENTS)


def test_a_mask_of_other_numbers_is_untouched_whatever_positions_are_given():
    """Of a model that reads both. One that reads it for zeros alone is relayed."""
    assert_untouched(pair("falcon_h1"), SEGMENTS, NUMBERS, position_ids=torch.arange(25).repeat(3, 1))
    assert_relayed(pair("llama"), SEGMENTS, position_ids=torch.arange(25).repeat(3, 1))


def test_positions_of_the_caller_are_the_callers_whatever_its_options_are_in():
    """A generation_config holds options, and no positions."""
    model = pair("llama")[1]
    model.generate(**SEGMENTS, generation_config=GenerationConfig(max_new_tokens=2))
    assert model.relay.last.reason == NUMBERS


def test_explain_says_of_a_mask_of_other_numbers_what_the_call_says():
    model = pair("llama")[1]
    assert model.relay.explain(**SEGMENTS).reason == NUMBERS
