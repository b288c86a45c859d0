"""How a prompt is given: by name or position, with a mask or without, as ids or as embeddings."""

import pytest
import torch
from transformers import (
    BatchEncoding,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)

from .compare import INPUTS, PREFIX, assert_relayed, assert_same_error, assert_untouched, generate

IDS, MASK = INPUTS["input_ids"], INPUTS["attention_mask"]
POSITIONS = (MASK.cumsum(-1) - 1).masked_fill(MASK == 0, 0)
EMBEDDINGS = "an input that is not relayed, 'inputs_embeds'"


def config(**options):
    return GenerationConfig(max_new_tokens=6, pad_token_id=0, eos_token_id=2, output_logits=True, **options)


def embeddings(model):
    return model.get_input_embeddings()(IDS).detach()


def everything_by_position(model):
    processors = LogitsProcessorList([TemperatureLogitsWarper(0.5)])
    return model.generate(IDS, config(), processors, StoppingCriteriaList(), allowed_tokens, attention_mask=MASK)


def allowed_tokens(row, ids):
    return [5, 6, 7, int(ids[-1])]


RELAYED = {
    "by name": lambda model: model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=6),
    "as inputs": lambda model: model.generate(inputs=IDS, attention_mask=MASK, max_new_tokens=6),
    "by position": lambda model: model.generate(IDS, attention_mask=MASK, max_new_tokens=6),
    "a tokenizer's encoding": lambda model: model.generate(**BatchEncoding(dict(INPUTS)), max_new_tokens=6),
    "padding read off the ids": lambda model: model.generate(IDS, max_new_tokens=6),
    "a configuration": lambda model: model.generate(**INPUTS, generation_config=config(return_dict_in_generate=True)),
    "a configuration by position": lambda model: model.generate(IDS, config(), attention_mask=MASK),
    "everything by position": everything_by_position,
    "narrow ids": lambda model: generate(model, {"input_ids": IDS.int(), "attention_mask": MASK.int()}),
    "a mask of bools": lambda model: generate(model, {"input_ids": IDS, "attention_mask": MASK.bool()}),
    "a mask of floats": lambda model: generate(model, {"input_ids": IDS, "attention_mask": MASK.float()}),
    "the positions that generate() counts": lambda model: generate(model, position_ids=POSITIONS),
    "views of a larger tensor": lambda model: generate(model, {k: v.T.contiguous().T for k, v in INPUTS.items()}),
}

UNTOUCHED = {
    "embeddings": (
        lambda model: model.generate(inputs_embeds=embeddings(model), attention_mask=MASK, max_new_tokens=6),
        EMBEDDINGS,
    ),
    "embeddings, beams": (
        lambda model: model.generate(
            inputs_embeds=embeddings(model), attention_mask=MASK, max_new_tokens=6, num_beams=2
        ),
        EMBEDDINGS,
    ),
    "embeddings and ids": (lambda model: generate(model, inputs_embeds=embeddings(model)), EMBEDDINGS),
    "other positions": (lambda model: generate(model, position_ids=POSITIONS + 3), "position_ids were given"),
    "a static cache in a configuration": (
        lambda model: model.generate(IDS, config(cache_implementation="static"), attention_mask=MASK),
        "generate() uses a StaticCache here",
    ),
    "nothing at all": (lambda model: model.generate(max_new_tokens=6), "there is no prompt to share"),
    "one token": (lambda model: model.generate(IDS[:, -1:], max_new_tokens=6), "there is no prompt to share"),
}

RAISING = {
    "an option that there is not": (lambda model: generate(model, nonsense=3), "not used by the model"),
    "ids twice": (lambda model: model.generate(IDS, input_ids=IDS, max_new_tokens=6), "were passed alongside"),
    "a mask of four dimensions": (
        lambda model: generate(model, {"input_ids": IDS, "attention_mask": torch.ones(4, 1, 27, 27)}),
        "must be 2D",
    ),
    "ids without rows": (lambda model: model.generate(IDS[0], max_new_tokens=6), "out of range"),
    "an empty prompt": (lambda model: model.generate(IDS[:, :0], max_new_tokens=6), "out of bounds"),
}


@pytest.mark.parametrize("mode", RELAYED)
def test_a_prompt_is_relayed(pair, mode):
    assert_relayed(pair, RELAYED[mode])


@pytest.mark.parametrize("mode", UNTOUCHED)
def test_a_prompt_passes_through(pair, mode):
    assert_untouched(pair, *UNTOUCHED[mode])


@pytest.mark.parametrize("mode", RAISING)
def test_what_stock_refuses_is_refused_alike(pair, mode):
    assert_same_error(pair, *RAISING[mode])


def test_rows_of_one_length_have_no_mask(pair):
    """Stock drops a mask that is all ones."""
    ids = torch.cat([IDS[1:2, :PREFIX].repeat(3, 1), torch.arange(5, 17).view(3, 4)], dim=1)
    assert_relayed(pair, lambda model: generate(model, {"input_ids": ids}), rows=3)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert_relayed(pair, lambda model: generate(model, inputs), rows=3)
