"""A patched model whose forward torch.compile has compiled: stock's tokens, and no graph more as rows grow."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.utils import counters

import relay_hf
from helpers import generate
from relay_hf.testing import prompts, tiny_model

RAGGED = (3, 7, 1, 5)


@pytest.fixture(autouse=True)
def no_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compile_forward(model, backend="eager"):
    model.forward = torch.compile(model.forward, backend=backend)


def compile_call(model):
    model.compile(backend="eager")


class Graphs:
    """How many graphs, and how many breaks between them, there were after each token."""

    def __init__(self):
        self.counts = []

    def __call__(self, input_ids, scores, **kwargs):
        self.counts.append((counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())))
        return torch.zeros(len(input_ids), dtype=torch.bool)


# DeepSeek-V3 expands what its cache holds anew in each step. A compiled call holds our hooks too.
@pytest.mark.parametrize(
    ("family", "compiled", "whole"),
    [
        ("llama", compile_forward, True),
        ("mistral", compile_forward, True),
        ("gemma2", compile_forward, True),
        ("gpt_oss", compile_forward, True),
        ("deepseek_v3", compile_forward, False),
        ("llama", compile_call, False),
    ],
)
def test_tokens_are_stocks_and_growing_rows_compile_nothing(family, compiled, whole):
    model = tiny_model(family)
    inputs, others = prompts(20, RAGGED), prompts(33, (2, 9, 4, 4))
    stock = [generate(copy.deepcopy(model), each) for each in (inputs, others)]
    relay_hf.patch_model(model, policy="always")
    compiled(model)
    calls = []
    for each, expected in zip((inputs, others, inputs), (*stock, stock[0]), strict=True):
        calls.append(Graphs())
        assert torch.equal(generate(model, each, stopping_criteria=[calls[-1]]), expected)
        assert model.relay.last.relayed
    # The first token is the prefill's, the second that of the first decode step.
    prefill, decode, *rest = calls[0].counts
    assert set(rest) == {decode}
    assert calls[2].counts == [calls[1].counts[-1]] * 12, "nothing is new in the third call"
    if whole:
        assert (decode[0] - prefill[0], decode[1] - prefill[1]) == (1, 0), "a decode step is one graph"
        assert set(calls[1].counts[1:]) == {calls[1].counts[0]}, "and it serves other batches too"


def test_inductor():
    model = tiny_model("mistral")
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="always")
    compile_forward(model, "inductor")
    assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.relayed
