"""Every tensor is made on a device that is named: PyTorch's default device may be another than the model's.

`torch.set_default_device("cuda")`, a line of many model cards, puts on the GPU what is meant for the host. The meta
device stands in for it here: what is made there by default has no content to read.
"""

import ast
import copy
from pathlib import Path

import pytest
import torch
from torch.utils._device import _device_constructors

import relay_hf
from relay_hf.ops import Segment, relay_attention
from relay_hf.testing import prompts
from tests.support.generating import CACHE, cache_of, generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))
ONE = {name: value[1:2] for name, value in INPUTS.items()}
PREFIX = INPUTS["input_ids"][1, :20]
PACKAGE = Path(relay_hf.__file__).parent


def under_another_default(call, model_type="llama"):
    """What `call` makes of a stock model and of a patched one, and the patched one's report."""
    stock = tiny_model(model_type)
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    with torch.device("meta"):
        return call(stock), call(ours), ours.relay.last


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "deepseek_v3", "mamba2", "qwen3_next"])
def test_a_batch_is_relayed(model_type):
    expected, got, report = under_another_default(lambda model: generate(model, INPUTS), model_type)
    assert torch.equal(got, expected)
    assert report.relayed, report


def test_a_row_is_kept_and_found():
    expected, got, report = under_another_default(lambda model: [generate(model, ONE) for _ in range(2)][1])
    assert torch.equal(got, expected)
    assert (report.relayed, report.prefix_tokens_reused) == (True, 26)


def next_turn(model):
    first = generate(model, INPUTS, return_dict_in_generate=True)
    mask = torch.nn.functional.pad(INPUTS["attention_mask"], (0, 14), value=1)
    ids = torch.nn.functional.pad(first.sequences, (0, 2), value=5)
    return generate(model, {"input_ids": ids, "attention_mask": mask}, **{CACHE: cache_of(first)})


def test_a_turn_on_a_returned_cache_is_relayed():
    expected, got, report = under_another_default(next_turn)
    assert torch.equal(got, expected)
    assert report.reason == "a returned cache, continued"


@pytest.mark.parametrize("as_given", [torch.Tensor.tolist, torch.Tensor.clone, torch.Tensor.numpy])
def test_prefixes_are_warmed_saved_and_loaded(as_given, tmp_path):
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    expected = generate(tiny_model("llama"), INPUTS)
    with torch.device("meta"):
        model.relay.warm(as_given(PREFIX))
        model.relay.save(tmp_path / "prefixes.safetensors")
        model.relay.clear()
        model.relay.load(tmp_path / "prefixes.safetensors")
        assert (
            model.relay.explain(INPUTS["input_ids"], INPUTS["attention_mask"], max_new_tokens=4).prefix_tokens_reused
            == 20
        )
        assert model.relay.explain(INPUTS["input_ids"][:, -4:].tolist(), max_new_tokens=4).rows == 4
        assert torch.equal(generate(model, INPUTS), expected)
    assert model.relay.last.prefix_tokens_reused == 20


def test_a_cache_made_by_hand_is_filled():
    model = relay_hf.patch_model(tiny_model("llama"), policy="always")
    expected = generate(tiny_model("llama"), INPUTS)
    with torch.device("meta"):
        cache = relay_hf.RelayCache(model.config)
        assert torch.equal(generate(model, INPUTS, **{CACHE: cache}), expected)
    assert model.relay.last.relayed
    assert cache.get_seq_length() == expected.shape[1] - 1


def test_the_operator_computes():
    query, own = torch.randn(3, 4, 1, 16), torch.randn(3, 2, 5, 16)
    shared = [Segment(key=torch.randn(2, 9, 16), value=torch.randn(2, 9, 16), rows=(0, 2))]
    lengths = torch.tensor([5, 3, 1], dtype=torch.int32)
    expected = relay_attention(query, shared, own, own, own_length=lengths)
    with torch.device("meta"):
        assert torch.equal(relay_attention(query, shared, own, own, own_length=lengths), expected)


def test_every_tensor_is_made_on_a_device_that_is_named():
    made = {function.__name__ for function in _device_constructors()}
    assert {"arange", "as_tensor", "empty", "full", "tensor", "zeros"} <= made
    left, seen = [], 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in made}:
                seen += 1
                if not any(keyword.arg == "device" for keyword in node.keywords):
                    left.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not left
    assert seen > 40
