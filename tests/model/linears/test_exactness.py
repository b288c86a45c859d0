"""Linear layers by oneDNN: their rounding beside stock's, and the tokens."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import relay_hf
from relay_hf.model.linears import layers, onednn
from relay_hf.testing import VOCABULARY, prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))
# The error against float64 that the operator may have, over that of PyTorch's own linear: of a product 0.3 to 2.3 here
# and of logits 1.5 to 1.7 (root mean squares).
MOST_OF_A_LAYER, MOST_OF_LOGITS = 2.5, 1.7


def error(found, exact):
    return (found.double() - exact).abs().max().item()


def mean_error(found, exact):
    return (found.double() - exact).pow(2).mean().sqrt().item()


@pytest.mark.parametrize(("outputs", "inputs"), [(768, 768), (2048, 768), (768, 2048), (1024, 4096), (97, 300)])
@pytest.mark.parametrize("rows", [1, 7, 16, 300])
def test_a_product_is_about_as_exact_as_stocks(rows, inputs, outputs):
    generator = torch.Generator().manual_seed(rows + inputs)
    x, weight = (torch.randn(count, inputs, generator=generator) for count in (rows, outputs))
    exact = nn.functional.linear(x.double(), weight.double())
    ours, stocks = onednn.linear(x, weight, None), nn.functional.linear(x, weight)
    assert mean_error(ours, exact) <= MOST_OF_A_LAYER * mean_error(stocks, exact)


def test_logits_are_about_as_exact_as_stocks():
    """Of a model of four layers of 512, behind a prefix of 200 tokens."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 8, "max_position_embeddings": 512, "vocab_size": VOCABULARY}
    config = LlamaConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=4, **sizes)
    stock = LlamaForCausalLM(config).eval()
    ours, exact = copy.deepcopy(stock), copy.deepcopy(stock).double()
    relay_hf.patch_model(ours, policy="always", linears=True)
    inputs = prompts(200, (9, 30, 17, 2))
    wanted = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    found = [torch.stack(model.generate(**inputs, **wanted).logits) for model in (stock, ours, exact)]
    assert (ours.relay.last.relayed, ours.relay.last.linears) == (True, "onednn")
    assert mean_error(found[1], found[2]) <= MOST_OF_LOGITS * mean_error(found[0], found[2])
    assert error(found[1], found[0].double()) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2", "mixtral", "deepseek_v3", "bamba", "opt"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_tokens_are_stocks(family, options, monkeypatch):
    stock = tiny_model(family)
    ours, computed = relay_hf.patch_model(copy.deepcopy(stock), policy="always", linears=True), []
    torch.manual_seed(1)
    expected = generate(stock, INPUTS, **options)

    def counted(*operands):
        computed.append(operands)
        return product(*operands)

    product = onednn.linear
    monkeypatch.setattr(onednn, "linear", counted)
    for _ in range(2):  # with nothing kept, and with the prefix kept
        torch.manual_seed(1)
        assert torch.equal(generate(ours, INPUTS, **options), expected)
        assert (ours.relay.last.relayed, ours.relay.last.linears) == (True, "onednn"), ours.relay.last
    plain = [module for module in ours.modules() if type(module) in layers.SWITCHED]
    assert {id(weight) for _, weight, _ in computed if weight._base is None} <= {id(each.weight) for each in plain}
    assert len(computed) > 12 * len(plain)


def test_a_layer_with_a_bias_and_strange_strides():
    """Weights that are a view of others, and of transposed layout, as tied and merged ones may be."""
    stock = tiny_model("gpt_neox")
    for module in stock.modules():
        if type(module) is nn.Linear:
            wide = torch.stack([module.weight.detach(), torch.zeros_like(module.weight)], dim=-1)
            module.weight = nn.Parameter(wide.transpose(0, 1).contiguous()[..., 0].T)
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", linears=True)
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.linears == "onednn"


def test_rows_that_end_early_and_a_second_turn():
    stock = tiny_model("llama")
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", linears=True)
    options = {"eos_token_id": list(range(1, VOCABULARY, 9)), "min_new_tokens": 1, "return_dict_in_generate": True}
    first = [generate(model, INPUTS, **options) for model in (stock, ours)]
    assert torch.equal(first[0].sequences, first[1].sequences)
    again = [each.sequences for each in first]
    second = [generate(model, {"input_ids": ids}) for model, ids in zip((stock, ours), again, strict=True)]
    assert torch.equal(*second)


def test_many_lengths_are_few_products(monkeypatch):
    """oneDNN makes code for each number of rows that it is given, which takes time and memory."""
    product, given = onednn._product, set()
    monkeypatch.setattr(onednn, "_product", lambda x, *rest: (given.add(x.numel() // 24), product(x, *rest))[1])
    weight, bias = torch.randn(17, 24), torch.randn(17)
    for rows in (*range(1, 1500, 7), 5000):
        x = torch.randn(rows, 2, 24)[:, 1] if rows % 2 else torch.randn(rows // 2, 2, 24)
        found = onednn.linear(x, weight, bias)
        torch.testing.assert_close(found, nn.functional.linear(x, weight, bias))
        assert found.is_contiguous()
    assert len(given) <= 10 + 12 + 12 + 2 + 1, sorted(given)
