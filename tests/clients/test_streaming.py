"""Sentences as they come, out of a thread: a conversation that is sent whole in every turn."""

from threading import Thread

from transformers import TextIteratorStreamer

from relay_hf import showcase

TURNS = (showcase.QUESTIONS[4], "And how long would that take?", "Thank you.")


def streamed(model, tokenizer, conversation):
    """The pieces of one answer, in the order in which they came."""
    inputs = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    # Without a timeout an error in the thread would leave the loop below waiting.
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(
        target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 16, "do_sample": False}
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    return pieces


def converse(model, tokenizer):
    """The pieces of each answer in a conversation of three turns."""
    conversation = [{"role": "system", "content": showcase.SYSTEM_PROMPT}]
    answers = []
    for question in TURNS:
        conversation.append({"role": "user", "content": question})
        answers.append(streamed(model, tokenizer, conversation))
        conversation.append({"role": "assistant", "content": "".join(answers[-1])})
    return answers


def test_a_conversation_streams_the_same_pieces_and_each_turn_goes_on_from_the_last(stock, ours, tokenizer, reports):
    expected = converse(stock, tokenizer)
    assert converse(ours, tokenizer) == expected
    assert all(len(pieces) > 1 for pieces in expected)
    first, *later = reports()
    assert (first.relayed, first.reason, first.prefix_tokens_reused) == (True, "kept for later calls", 0)
    assert len(later) == 2
    for report in later:
        assert (report.relayed, report.reason) == (True, "a kept prefix")
        assert report.prefix_tokens_reused >= first.prompt_tokens_computed
        assert report.prompt_tokens_computed < 64
