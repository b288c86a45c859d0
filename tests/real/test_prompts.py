"""Two hundred prompts of real text, in float32: the tokens of each are stock's."""

import re
from pathlib import Path

import pytest
import torch

import relay_hf

from .chats import chat, say

DOCS = Path(relay_hf.__file__).parents[1] / "docs"
COUNT, ROWS, WORDS = 200, 20, 12
TASKS = [
    f"You are given the beginning of a paragraph of a manual. {how} Keep to what it says. Use plain words."
    for how in ("Say in one sentence what it is about.", "Go on with it.", "Ask one question that it answers.")
]


def paragraphs():
    """The first words of the paragraphs of the documentation, as many as there are prompts, each another one."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    prose = [" ".join(part.split()[:WORDS]) for part in text.split("\n\n") if re.match(r"[A-Z`*\[]\w*", part)]
    return list(dict.fromkeys(prose))[:COUNT]


@pytest.mark.sweep
@pytest.mark.parametrize("batch", range(COUNT // ROWS))
def test_batches_of_real_text(stock, ours, shown, batch):
    """Proves what a few prompts don't: no tie of 200 texts that a model met in training goes another way."""
    texts = paragraphs()
    assert len(texts) == COUNT
    texts = texts[batch * ROWS : (batch + 1) * ROWS]
    inputs = shown.inputs([chat(text, TASKS[batch % len(TASKS)]) for text in texts])
    expected, got = (say(model, inputs, max_new_tokens=6) for model in (stock, ours))
    assert ours.relay.last.relayed, ours.relay.last.reason
    assert torch.equal(got.sequences, expected.sequences)
