"""xgrammar and outlines: logits processors that leave only what a grammar allows."""

import copy
import json
import re

import outlines
import pytest
import torch
import xgrammar
from xgrammar.contrib.hf import LogitsProcessor

import relay_hf
from tests.support.tiny_models import tiny_model

from . import spelled

PATTERN = r"[a-z]{3,8} [0-9]{2}"
SCHEMA = {"type": "object", "properties": {"count": {"type": "integer", "maximum": 99}}, "required": ["count"]}
NEW = 24


@pytest.fixture
def tokenizer():
    return spelled.tokenizer()


@pytest.fixture
def models(tokenizer):
    """A stock model, and a patched copy, that make any letter."""
    stock = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


def assert_relayed(model, reused):
    report = model.relay.last
    assert report.relayed, report
    assert report.prefix_length >= len(spelled.START)
    assert (report.prefix_tokens_reused > 0) == reused


def fits_schema(text):
    return set(json.loads(text)) == {"count"}


def fits_pattern(text):
    return re.fullmatch(PATTERN, text)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("grammar", [fits_pattern, fits_schema])
def test_xgrammars_processor_is_relayed_with_stocks_texts(models, tokenizer, grammar, samples):
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer)))
    compiled = (
        compiler.compile_regex(PATTERN)
        if grammar is fits_pattern
        else compiler.compile_json_schema(json.dumps(SCHEMA), any_whitespace=False)
    )
    inputs = tokenizer(spelled.TEXTS, padding=True, return_tensors="pt")
    for reused in (False, True):
        outputs = []
        for model in models:
            torch.manual_seed(0)
            options = {"do_sample": samples > 1, "num_return_sequences": samples, "max_new_tokens": NEW}
            outputs.append(model.generate(**inputs, **options, logits_processor=[LogitsProcessor(compiled)]))
        assert torch.equal(*outputs)
        assert_relayed(models[1], reused)
    texts = tokenizer.batch_decode(outputs[1][:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len({*texts}) > 1
    assert all(map(grammar, texts))


def test_outlines_own_wrapper_of_a_model_is_relayed_with_stocks_texts(models, tokenizer):
    answers = []
    for model in models:
        generator = outlines.Generator(outlines.from_transformers(model, tokenizer), outlines.regex(PATTERN))
        torch.manual_seed(0)
        answers.append(
            [
                generator.batch(spelled.TEXTS, max_new_tokens=NEW),
                generator(spelled.TEXTS[0], max_new_tokens=NEW, do_sample=True, num_return_sequences=3),
            ]
        )
    assert answers[0] == answers[1]
    assert_relayed(models[1], reused=True)
    assert models[1].relay.stats().relayed_calls == 2
    texts = [text for call in answers[1] for text in call]
    assert len({*texts}) > 1
    assert all(map(fits_pattern, texts))
