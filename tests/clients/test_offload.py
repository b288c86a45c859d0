"""accelerate: weights that wait in CPU memory or on disk, and come to where a model runs module by module."""

import copy

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

import relay_hf

from .texts import SYSTEM, texts

ROWS = 4
# Where there is no GPU a model runs on "cpu", and what a device map sends to "disk" is what it offloads.
HALF = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
HALF |= {"model.norm": "disk", "lm_head": "disk"}
ALL = dict.fromkeys(HALF, "disk")


def loaded(device_map):
    """As users load what does not fit."""

    def load(model, folder):
        model.save_pretrained(folder / "model")
        offload = folder / "offload"
        return AutoModelForCausalLM.from_pretrained(folder / "model", device_map=device_map, offload_folder=offload)

    return load


OFFLOADS = {
    "device_map, half of it": loaded(HALF),
    "device_map, all of it": loaded(ALL),
    "cpu_offload": lambda model, _: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder / "disk", execution_device="cpu"),
}


def answers(model, tokenizer):
    inputs = tokenizer(texts(ROWS), padding=True, return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_model_is_relayed_within_a_call_and_keeps_nothing(stock, tokenizer, tmp_path, offload):
    """A hook takes the place of each module's forward, and its weights come anew: nothing says whether they changed."""
    expected = answers(stock, tokenizer)
    model = OFFLOADS[offload](copy.deepcopy(stock), tmp_path)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    assert torch.equal(answers(model, tokenizer), expected)
    relay_hf.patch_model(model, policy="always")
    for _ in range(2):
        assert torch.equal(answers(model, tokenizer), expected)
        report = model.relay.last
        assert (report.relayed, report.rows, report.prefix_tokens_reused) == (True, ROWS, 0), report
        assert report.prefix_length >= len(tokenizer(SYSTEM).input_ids)
    assert not model.relay.prefixes


@pytest.mark.parametrize("offload", ["cpu_offload", "disk_offload"])
def test_a_model_may_be_patched_before_it_is_offloaded(ours, stock, tokenizer, tmp_path, offload):
    expected = answers(stock, tokenizer)
    assert torch.equal(answers(ours, tokenizer), expected)
    assert ours.relay.prefixes
    model = OFFLOADS[offload](ours, tmp_path)
    assert torch.equal(answers(model, tokenizer), expected)
    assert (model.relay.last.relayed, model.relay.last.prefix_tokens_reused) == (True, 0), model.relay.last
