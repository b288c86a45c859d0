"""Kept prefixes of a model whose calls are replayed: calls and what is done between them see the same model."""

import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 5))
PREFIX = INPUTS["input_ids"][1, :20]  # of the row without padding


@pytest.fixture
def model(graphs):
    return relay_hf.patch_model(tiny_model("llama"), policy="always", cuda_graphs=True)


def test_a_prefix_that_is_warmed_or_loaded_serves_the_next_call(model, tmp_path):
    stock = generate(tiny_model("llama"), INPUTS)
    model.relay.warm(PREFIX, progress=False)
    assert torch.equal(generate(model, INPUTS), stock)
    assert (model.relay.last.prefix_tokens_reused, model.relay.last.graph_steps) == (20, 10)
    model.relay.save(tmp_path / "prefix")
    model.relay.clear()
    model.relay.load(tmp_path / "prefix")
    assert torch.equal(generate(model, INPUTS), stock)
    assert (model.relay.last.prefix_tokens_reused, model.relay.last.graph_steps) == (20, 10)


def test_what_a_call_has_kept_is_there_between_calls(model):
    generate(model, INPUTS)
    assert model.relay.explain(**INPUTS).prefix_tokens_reused == 20
    model.relay.warm(prompts(30, (1,), seed=1)["input_ids"][0], progress=False)
    generate(model, INPUTS)
    assert model.relay.last.prefix_tokens_reused == 20
