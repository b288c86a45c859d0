"""GPTQModel: layers of GPTQ and AWQ, in plain PyTorch."""

import pytest
import torch
from gptqmodel.nn_modules.qlinear.torch import TorchQuantLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchQuantLinear
from torch import nn

import relay_hf
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.tiny_models import tiny_model
from tests.traps.compare import error, run

INPUTS = prompts(20, (3, 7, 1, 5))
WIDTH, GROUP, BITS = 64, 32, 4


def packed(kind, old):
    """A layer of random weights of 4 bits, as a checkpoint has them."""
    shape = {"in_features": old.in_features, "out_features": old.out_features, "bias": False, "register_buffers": True}
    made = kind(bits=BITS, group_size=GROUP, sym=True, desc_act=False, **shape)
    generator = torch.Generator().manual_seed(old.in_features + old.out_features)
    for buffer in (made.qweight, made.qzeros):
        words = torch.randint(-(2**31), 2**31, buffer.shape, generator=generator, dtype=torch.int64)
        buffer.copy_(words.to(torch.int32))
    made.scales.copy_(0.02 + 0.02 * torch.rand(made.scales.shape, generator=generator))
    made.post_init()
    return made.eval()


def quantized(kind):
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model("llama", **sizes, head_dim=WIDTH // 4)
    for name, module in list(model.model.named_modules()):
        if type(module) is nn.Linear:
            model.model.set_submodule(name, packed(kind, module))
    return model


@pytest.fixture(autouse=True)
def uncompiled():
    """The layers compile a part of themselves, which takes seconds."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("kind", [TorchQuantLinear, AwqTorchQuantLinear])
def test_a_layer_gives_a_token_the_same_whatever_is_beside_it(kind):
    layer = packed(kind, nn.Linear(WIDTH, WIDTH))
    hidden = torch.randn(4, 8, WIDTH, generator=torch.Generator().manual_seed(0))
    hidden[0, 0, 3], hidden[2, 1, 7] = 30.0, 40.0
    with torch.no_grad():
        beside = layer(hidden)
        alone = torch.cat([layer(token[None]) for token in hidden.flatten(0, 1).split(1)]).view_as(beside)
    largest_weight, unit = 0.04 * 2**BITS, 2.0**-24
    bound = 2 * WIDTH * unit * largest_weight * hidden.abs().sum(dim=-1, keepdim=True)
    assert bool(((alone - beside).abs() <= bound).all())


@pytest.mark.parametrize("kind", [TorchQuantLinear, AwqTorchQuantLinear])
def test_a_quantized_model_is_relayed_and_keeps_nothing(kind):
    stock, ours = quantized(kind), relay_hf.patch_model(quantized(kind), policy="always")
    for _ in range(2):
        assert error(run(stock, INPUTS), run(ours, INPUTS)) <= TOLERANCE
        report = ours.relay.last
        assert (report.relayed, report.prefix_length, report.prefix_tokens_reused) == (True, 20, 0), report
        assert report.unkept_reason == "the model is quantized"
