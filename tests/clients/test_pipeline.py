"""Transformers' text-generation pipeline: batches of prompts with one system prompt in front."""

import pytest
from transformers import pipeline, set_seed

from relay_hf import showcase

from .texts import SYSTEM, chat, texts

BATCH = 4
TEXTS = texts(2 * BATCH)
CHATS = [chat(question) for question in showcase.QUESTIONS[: 2 * BATCH]]
GREEDY = {"do_sample": False}
SAMPLES = {"do_sample": True, "num_return_sequences": 3}


def answers(model, tokenizer, prompts, options):
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    set_seed(0)
    return generator(prompts, batch_size=BATCH, max_new_tokens=12, **options)


@pytest.mark.parametrize("options", [GREEDY, SAMPLES], ids=["greedy", "samples"])
@pytest.mark.parametrize("prompts", [TEXTS, CHATS], ids=["texts", "chats"])
def test_every_batch_is_relayed_and_answered_as_by_stock(stock, ours, tokenizer, reports, prompts, options):
    expected = answers(stock, tokenizer, prompts, options)
    assert answers(ours, tokenizer, prompts, options) == expected
    assert len({str(answer) for answer in expected}) == len(prompts)
    first, second = reports()
    assert first.relayed
    assert second.relayed
    rows = BATCH * options.get("num_return_sequences", 1)
    assert (first.rows, second.rows) == (rows, rows)
    assert first.prefix_tokens_reused == 0
    assert second.prefix_tokens_reused >= len(tokenizer(SYSTEM).input_ids)
