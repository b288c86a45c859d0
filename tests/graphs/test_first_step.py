"""A model that takes another way for a single query, where decode steps may be graphs."""

import copy

import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.fast_decode import FastLlama
from tests.support.generating import generate

INPUTS = prompts(20, (3, 7, 2, 5))


def test_its_first_step_is_run_again_as_stock_and_no_step_is_captured(graphs):
    stock = FastLlama.tiny()
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", cuda_graphs=True)
    for options in ({}, {"num_beams": 2}, {"do_sample": True}):
        ours.relay.clear()
        for _ in range(2):
            tokens = []
            for model in (stock, ours):
                torch.manual_seed(0)
                tokens.append(generate(model, INPUTS, **options))
            assert torch.equal(*tokens)
            report = ours.relay.last
            assert (report.relayed, report.graph_steps, graphs) == (False, 0, [])
            assert "layers [0, 1] did not" in report.reason
    assert "_compiled_call_impl" not in vars(ours)
