"""Models whose weights are elsewhere than where they run."""

import copy

import accelerate
import torch

import relay_hf
from relay_hf.model.device import device_of
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))
CPU, META = torch.device("cpu"), torch.device("meta")


def test_a_model_without_a_hook_runs_where_its_weights_are():
    assert device_of(tiny_model("llama")) == CPU
    assert device_of(tiny_model("llama").to("meta")) == META


def test_a_model_that_is_offloaded_as_a_whole_runs_where_its_hooks_say_and_is_relayed_there():
    stock = tiny_model("llama")
    ours = accelerate.cpu_offload(copy.deepcopy(stock), execution_device="cpu")
    assert (ours.device, device_of(ours)) == (META, CPU)
    relay_hf.patch_model(ours, policy="always")
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.relayed, ours.relay.last
    assert ours.relay.last.prefix_length == 20
