"""Prefixes of real text that live on: turns of a conversation, a warmed system prompt, a file."""

import pytest
import torch

from .chats import INTRODUCTION, QUESTIONS, chat, say


def rendered(shown, messages, ends=True):
    return shown.tokenizer.apply_chat_template(
        [messages], add_generation_prompt=ends, return_dict=True, return_tensors="pt"
    )


def test_each_turn_of_a_conversation_goes_on_from_the_last_one(stock, ours, shown):
    messages = chat(QUESTIONS[0])
    before = 0
    for follow_up in ("And if I wore them outside?", "Thank you. Where do I send them?", None):
        inputs = rendered(shown, messages)
        expected, got = say(stock, inputs), say(ours, inputs)
        assert torch.equal(got.sequences, expected.sequences)
        report = ours.relay.last
        assert report.relayed, report.reason
        assert (report.prefix_tokens_reused > 0) == (before > 0)
        assert report.prefix_tokens_reused >= before
        before = inputs.input_ids.shape[1]
        answer = shown.texts(expected.sequences[:, before:])[0]
        messages = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": follow_up or ""}]


@pytest.fixture
def system(shown):
    """The tokens of the system message as the template renders it alone, `[P]`."""
    return rendered(shown, [{"role": "system", "content": INTRODUCTION}], ends=False).input_ids[0]


def test_a_warmed_system_prompt_serves_every_batch(stock, ours, shown, system):
    ours.relay.warm(system, prefill_chunk_size=40)
    for questions in (QUESTIONS[:2], QUESTIONS[2:]):
        inputs = shown.inputs([chat(question) for question in questions])
        assert torch.equal(say(ours, inputs).sequences, say(stock, inputs).sequences)
        assert ours.relay.last.prefix_tokens_reused >= len(system)


def test_a_prefix_from_a_file_gives_stocks_answer(stock, ours, shown, system, tmp_path):
    path = tmp_path / "support_bot.safetensors"
    ours.relay.save(path, [ours.relay.warm(system)])
    ours.relay.clear()
    (loaded,) = ours.relay.load(path)
    assert torch.equal(loaded.ids, system)
    inputs = shown.inputs([chat(QUESTIONS[0])])
    assert torch.equal(say(ours, inputs).sequences, say(stock, inputs).sequences)
    assert ours.relay.last.prefix_tokens_reused == len(system)
