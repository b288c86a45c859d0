"""A step that was started ahead, computed as late as it may be: when what comes later waits for it."""

import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .cpu_graph import CpuGraph

INPUTS = prompts(20, (3, 5))


@pytest.fixture
def late(graphs, monkeypatch):
    """The graphs that were started, and for whose work nobody has waited yet."""
    begun = []

    def join(graph):
        if graph in begun:
            begun.remove(graph)
            with torch.no_grad():  # the call may be over
                graph.replay()

    monkeypatch.setattr(CpuGraph, "replay_beside", lambda graph: begun.append(graph))
    monkeypatch.setattr(CpuGraph, "join", join)
    return begun


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_tokens_and_logits_are_stocks(late, family, options):
    model = tiny_model(family)
    options = {**options, "output_logits": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    stock = generate(model, INPUTS, **options)
    relay_hf.patch_model(model, policy="always", cuda_graphs=True)
    for steps in (10, 11):
        torch.manual_seed(0)
        ours = generate(model, INPUTS, **options)
        assert model.relay.last.graph_steps == steps
        assert torch.equal(ours.sequences, stock.sequences)
        torch.testing.assert_close(torch.stack(ours.logits), torch.stack(stock.logits), rtol=0, atol=1e-4)


def test_a_step_that_nobody_asks_for_is_waited_for_before_its_graph_serves_another_call(late):
    model = tiny_model("llama")

    def stop(ids, scores):
        return torch.full((len(ids),), ids.shape[1] >= 31)

    options = {"max_new_tokens": 20, "min_new_tokens": 0, "stopping_criteria": [stop]}
    stock = [generate(model, INPUTS, **options), generate(model, prompts(20, (3, 5), seed=4))]
    relay_hf.patch_model(model, policy="always", cuda_graphs=True)
    assert torch.equal(generate(model, INPUTS, **options), stock[0])
    assert late == []
    assert torch.equal(generate(model, prompts(20, (3, 5), seed=4)), stock[1])
    assert model.relay.last.graph_steps == 11
