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


def compiled_graphs():
    return counters["stats"]["unique_graphs"]


def compile_forward(model, backend="eager"):
    model.forward = torch.compile(model.forward, backend=backend)


class Graphs:
    """The graphs there were after each token."""

    def __init__(self):
        self.counts = []

    def __call__(self, input_ids, scores, **kwargs):
        self.counts.append(compiled_graphs())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"])
def test_tokens_are_stocks_and_growing_rows_compile_nothing(family):
    model = tiny_model(family)
    inputs, others = prompts(20, RAGGED), prompts(33, (2, 9, 4, 4))
    stock = [generate(copy.deepcopy(model), each) for each in (inputs, others)]
    relay_hf.patch_model(model, policy="always")
    compile_forward(model)
    for _ in range(2):
        for each, expected in zip((inputs, others), stock, strict=True):
            graphs = Graphs()
            assert torch.equal(generate(model, each, stopping_criteria=[graphs]), expected)
            assert model.relay.last.relayed
    # The first token is the prefill's, the second that of the first decode step.
    assert len(set(graphs.counts)) == 1


def test_inductor():
    model = tiny_model("llama")
    inputs = prompts(20, RAGGED)
    stock = generate(model, inputs)
    relay_hf.patch_model(model, policy="always")
    compile_forward(model, "inductor")
    assert torch.equal(generate(model, inputs), stock)
    assert model.relay.last.relayed
