"""Streamers are put the same tokens, in the same pieces."""

import queue
import threading

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

from .compare import (
    INPUTS,
    NEW,
    NO_PREFILL,
    ONE,
    assert_relayed,
    assert_relayed_alone,
    assert_same_error,
    assert_untouched,
    generate,
)


class Recorder(BaseStreamer):
    """Keeps what it is put."""

    def __init__(self):
        self.pieces = []

    def put(self, value):
        self.pieces.append(value.clone())

    def end(self):
        self.pieces.append(None)


def recorded(model, inputs, **options):
    streamer = Recorder()
    output = generate(model, inputs, streamer=streamer, **options)
    return output.sequences, streamer.pieces


STRATEGIES = [{}, {"do_sample": True}]


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_a_single_row(pair, options):
    _, pieces = assert_relayed_alone(pair, lambda model: recorded(model, ONE, **options))
    assert torch.equal(pieces[0], ONE["input_ids"])
    assert pieces[-1] is None


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_a_batch(pair, options):
    _, pieces = assert_relayed(pair, lambda model: recorded(model, INPUTS, **options))
    assert [len(piece) for piece in pieces[:-1]] == [4] * (1 + NEW)


def test_candidate_tokens(pair):
    """Prompt lookup puts several tokens at once."""
    assert_untouched(pair, lambda model: recorded(model, ONE, prompt_lookup_num_tokens=3), NO_PREFILL)


def test_beams(pair):
    assert_same_error(pair, lambda model: recorded(model, INPUTS, num_beams=2), "`streamer` cannot be used with beam")


def test_text(pair, tokenizer, capsys):
    def call(model):
        generate(model, ONE, streamer=TextStreamer(tokenizer, skip_prompt=True))
        return capsys.readouterr().out

    assert assert_relayed_alone(pair, call).strip()


def test_text_from_another_thread(pair, tokenizer):
    def call(model):
        streamer = TextIteratorStreamer(tokenizer, timeout=60)
        sequences = queue.SimpleQueue()
        run = threading.Thread(target=lambda: sequences.put(generate(model, ONE, streamer=streamer).sequences))
        run.start()
        text = "".join(streamer)
        run.join()
        return text, sequences.get_nowait()

    text, sequences = assert_relayed_alone(pair, call)
    assert text.split() == tokenizer.decode(sequences[0]).split()
