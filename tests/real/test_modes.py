"""Modes of generate() on real weights, in float32: stock's tokens and logits, first with nothing kept, then kept."""

import pytest
import torch

from relay_hf import showcase

from .chats import INTRODUCTION, QUESTIONS, WRITING, assert_stocks, chat, say

# Of each mode: options, rows that the model runs, levels of sharing.
MODES = {
    "greedy, with the author's penalty": ({}, 4, 1),
    "greedy": ({"repetition_penalty": 1.0}, 4, 1),
    "sampling": ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, 4, 1),
    "samples of each": ({"do_sample": True, "num_return_sequences": 2}, 8, 2),
    "beams": ({"num_beams": 3, "num_return_sequences": 2}, 12, 2),
    "n-grams": ({"no_repeat_ngram_size": 2, "repetition_penalty": 1.0}, 4, 1),
    "chunked prefill": ({"prefill_chunk_size": 50}, 4, 1),
}


@pytest.fixture(scope="session")
def inputs(shown):
    """Four questions to one system prompt; three of the rows begin with padding."""
    found = shown.inputs([chat(question) for question in QUESTIONS])
    assert sorted((found.attention_mask == 0).any(dim=1).tolist()) == [False, True, True, True]
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_has_stocks_tokens_and_logits(stock, ours, inputs, mode):
    options, rows, levels = MODES[mode]
    assert_stocks(stock, ours, inputs, rows=rows, levels=levels, **options)


def test_answers_are_english_and_each_question_has_its_own(stock, ours, shown, inputs):
    expected = assert_stocks(stock, ours, inputs, rows=4, max_new_tokens=16)
    said = shown.texts(expected.sequences[:, inputs.input_ids.shape[1] :])
    assert len(set(said)) == 4
    for text in said:
        assert {"the", "a", "you", "your", "is", "to"} & set(text.lower().split()), text


def test_rows_that_end_at_different_steps(stock, ours, shown, inputs):
    """The end of the turn comes early in some rows: they go on as padding, as stock has it."""
    options = {"stop_strings": [" a", ",", " the"], "tokenizer": shown.tokenizer, "max_new_tokens": 20}
    ids = assert_stocks(stock, ours, inputs, rows=4, **options).sequences[:, inputs.input_ids.shape[1] :]
    ends = (ids != shown.tokenizer.pad_token_id).sum(dim=1)
    assert len(ends.unique()) > 1


def test_padding_longer_than_the_prompt_of_a_row(stock, ours, shown):
    long = " ".join(showcase.QUESTIONS[:7])
    inputs = shown.inputs([chat(QUESTIONS[1]), chat(long), chat(QUESTIONS[2])])
    pads = (inputs.attention_mask == 0).sum(dim=1)
    assert (pads > inputs.attention_mask.sum(dim=1)).any()
    assert_stocks(stock, ours, inputs, rows=3)


def test_a_tree_of_two_levels(stock, ours, shown):
    """A system prompt for all, another section of the handbook for each two rows."""
    systems = [INTRODUCTION + "\n\n## " + part for part in (WRITING[:200], WRITING[-200:])]
    inputs = shown.inputs([chat(question, systems[row // 2]) for row, question in enumerate(QUESTIONS)])
    assert_stocks(stock, ours, inputs, rows=4, levels=2)


def test_samples_of_questions_that_share_a_system_prompt(stock, ours, shown):
    inputs = shown.inputs([chat(question) for question in QUESTIONS[:2]])
    assert_stocks(stock, ours, inputs, rows=6, levels=2, do_sample=True, num_return_sequences=3)


def test_a_batch_of_base_text_without_chat_marks(stock, ours, shown):
    texts = [f"{WRITING}\n\nIn short, {end}" for end in ("be brief", "answer first, and", "do not")]
    inputs = shown.tokenizer(texts, padding=True, return_tensors="pt")
    assert_stocks(stock, ours, inputs, rows=3)


def test_the_model_is_kept_and_a_change_of_one_weight_is_noticed(stock, ours, inputs):
    say(ours, inputs)
    layer = ours.model.layers[14].mlp.down_proj
    before = layer.weight.detach().clone()
    try:
        with torch.no_grad():
            layer.weight.mul_(1.5)  # the twin shares it with the stock model
        assert torch.equal(say(ours, inputs).sequences, say(stock, inputs).sequences)
        assert ours.relay.last.prefix_tokens_reused == 0
    finally:
        with torch.no_grad():
            layer.weight.copy_(before)
