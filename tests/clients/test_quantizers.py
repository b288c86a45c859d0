"""Quantized models: which ones are relayed, because no row depends on the others, and which are left to stock."""

import bitsandbytes
import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from torch import nn
from torchao import quantization as torchao
from torchao.prototype.quantized_training.int8 import Int8QuantizedTrainingLinearWeight
from torchao.quantization.granularity import PerTensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from transformers.integrations.eetq import EetqLinear

import relay_hf
from relay_hf.testing import prompts
from tests.models.trial import TOLERANCE
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model
from tests.traps.compare import assert_untouched, error, run

from .quantizers import DEPENDENT, INDEPENDENT, MODES, WIDTH, exchange

OWN = (3, 7, 1, 5)
INPUTS = prompts(20, OWN)
QUANTIZED = "the model is quantized"
FIRST = "model.layers.0.self_attn.q_proj"
DRAWS, FACTOR = 8, 1.05  # batches; how much larger an error may be than stock's
EXACT = [name for name in INDEPENDENT if not MODES[name].unrounded]
ROUNDED = [name for name in INDEPENDENT if MODES[name].unrounded]


@pytest.fixture(autouse=True)
def uncompiled():
    """Some of these layers have functions that PyTorch compiles, which takes seconds for each shape."""
    with torch.compiler.set_stance("force_eager"):
        yield


def base(seed=0):
    """Wide enough for all quantizers' blocks."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2}
    return tiny_model("llama", seed, **sizes, head_dim=WIDTH // 4)


def quantized(name, model):
    MODES[name].quantize(model)
    return model.eval()


def pair(name):
    """A quantized model, and a patched one."""
    stock, ours = quantized(name, base()), quantized(name, base())
    return stock, relay_hf.patch_model(ours, policy="always")


def assert_relayed(models, inputs, **options):
    """Stock's output twice, with nothing kept and the reason given."""
    stock, ours = models
    for _ in range(2):
        assert error(run(stock, inputs, **options), run(ours, inputs, **options)) <= TOLERANCE
        report = ours.relay.last
        assert (report.relayed, report.prefix_length, report.prefix_tokens_reused) == (True, 20, 0), report
        assert report.unkept_reason == QUANTIZED


def assert_relayed_with_stocks_error(models, name):
    """As close as stock's are the logits to those of a model with the same weights that rounds no activation."""
    reference = base()
    MODES[name].unrounded(reference)
    squares = torch.zeros(2)
    for seed in range(DRAWS):
        inputs = prompts(20, OWN, seed)
        exact, *logits = (run(model, inputs, new=1).logits[0] for model in (reference, *models))
        assert models[1].relay.last.relayed, models[1].relay.last
        assert models[1].relay.last.unkept_reason == QUANTIZED
        squares += torch.stack([((each - exact) ** 2).mean() for each in logits])
    stocks, ours = (squares / DRAWS).sqrt().tolist()
    assert ours <= FACTOR * stocks + TOLERANCE


def alone_and_beside(name):
    """One layer's outputs `[rows, tokens, WIDTH]` for tokens one by one, and in a batch in which two have an outlier.

    Returns also how far they may be apart: the largest error of two sums of float32.
    """
    torch.manual_seed(0)
    layer = quantized(name, nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)))
    hidden = torch.randn(4, 8, WIDTH) * torch.rand(4, 8, 1)
    hidden[0, 0, 3], hidden[2, 1, 7] = 30.0, 40.0

    def outputs(hidden):
        found = layer(hidden)
        return found.dequantize() if type(found) is not torch.Tensor else found  # quanto's may stay in 8 bits

    with torch.no_grad():
        beside = outputs(hidden)
        alone = torch.cat([outputs(token[None]) for token in hidden.flatten(0, 1).split(1)])
    largest_weight, unit = 0.5, 2.0**-24
    bound = 2 * WIDTH * unit * largest_weight * hidden.abs().sum(dim=-1, keepdim=True)
    return alone.view_as(beside), beside, bound


@pytest.mark.parametrize("name", [name for name in INDEPENDENT if "embeddings" not in name])
def test_a_layer_gives_a_token_the_same_whatever_is_beside_it(name):
    alone, beside, bound = alone_and_beside(name)
    assert beside.std() > 0.01
    assert bool(((alone - beside).abs() <= bound).all())


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_layer_that_is_refused_gives_a_token_something_else_beside_others(name):
    alone, beside, bound = alone_and_beside(name)
    assert bool(((alone - beside).abs() > 10 * bound).any())


@pytest.mark.parametrize("name", EXACT)
def test_a_quantized_model_is_relayed_and_keeps_nothing(name):
    models = pair(name)
    assert_relayed(models, INPUTS)
    torch.manual_seed(0)
    expected = generate(models[0], INPUTS, do_sample=True, num_return_sequences=2)
    torch.manual_seed(0)
    assert torch.equal(generate(models[1], INPUTS, do_sample=True, num_return_sequences=2), expected)
    assert (models[1].relay.last.relayed, models[1].relay.last.rows) == (True, 2 * len(OWN))


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_activations_are_relayed_with_stocks_error(name):
    assert_relayed_with_stocks_error(pair(name), name)


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_model_whose_rows_depend_on_their_batch_is_untouched_unless_the_user_vouches_for_it(name):
    models = pair(name)
    assert_untouched(models, INPUTS, f"), {MODES[name].dependent}")
    assert models[1].relay.last.reason.startswith("a quantized layer, Linear")
    relay_hf.patch_model(models[1], trust=["*"])
    run(models[1], INPUTS)
    assert models[1].relay.last.relayed, models[1].relay.last


# By the configuration that from_pretrained() is given: the mode that it comes to.
LOADED = {
    "bitsandbytes, 8 bits": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
    "bitsandbytes, 8 bits but for outliers": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes, nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "quanto, int4": lambda: QuantoConfig(weights="int4"),
    "torchao, int8 weights": lambda: TorchAoConfig(torchao.Int8WeightOnlyConfig()),
    "torchao, int8 by row": lambda: TorchAoConfig(torchao.Int8DynamicActivationInt8WeightConfig()),
    "torchao, int8 by tensor": lambda: TorchAoConfig(
        torchao.Int8DynamicActivationInt8WeightConfig(granularity=PerTensor())
    ),
}


@pytest.mark.parametrize("name", LOADED)
def test_a_model_that_is_quantized_when_it_is_loaded(name, tmp_path):
    base().save_pretrained(tmp_path)
    options = {"device_map": "cpu", "dtype": torch.float32}
    stock, ours = (
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=LOADED[name](), **options) for _ in range(2)
    )
    models = stock.eval(), relay_hf.patch_model(ours.eval(), policy="always")
    if name in DEPENDENT:
        assert_untouched(models, INPUTS, f"(module {FIRST!r}), {MODES[name].dependent}")
    elif name in ROUNDED:
        assert_relayed_with_stocks_error(models, name)
    else:
        assert_relayed(models, INPUTS)


def test_a_compressed_checkpoint_is_relayed_from_its_first_call_on(tmp_path):
    """It is decompressed in the first forward, by a hook, which then puts forwards on all modules."""
    name = "compressed-tensors, fixed scale"
    model = quantized(name, base())
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format="int-quantized")
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    stock, ours = (AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval() for _ in range(2))
    layer = ours.get_submodule(FIRST)
    assert layer.weight.dtype == torch.int8
    assert_relayed((stock, relay_hf.patch_model(ours, policy="always")), INPUTS)
    assert layer.weight.dtype == torch.float32
    assert "forward" in layer.__dict__


def other_embedding(old):
    """bitsandbytes' own, with a normalization."""
    return bitsandbytes.nn.StableEmbedding(old.num_embeddings, old.embedding_dim)


def other_weight(old):
    """torchao's tensor for training."""
    old.weight = nn.Parameter(Int8QuantizedTrainingLinearWeight.from_float(old.weight.data), requires_grad=False)
    return old


UNKNOWN = {
    other_embedding: (nn.Embedding, "StableEmbedding (module 'model.embed_tokens')", "bitsandbytes.nn.modules"),
    other_weight: (nn.Linear, "(module ", "torchao.prototype.quantized_training"),
}


@pytest.mark.parametrize("make", UNKNOWN, ids=lambda make: make.__name__)
def test_a_layer_that_is_not_in_the_table_is_untouched(make):
    kind, module, package = UNKNOWN[make]
    models = [base(), base()]
    for model in models:
        torch.manual_seed(0)
        exchange(kind, make)(model)
    assert_untouched((models[0], relay_hf.patch_model(models[1], policy="always")), INPUTS, module)
    reason = models[1].relay.last.reason
    assert f" runs {package}" in reason


def test_a_layer_of_transformers_own_that_is_not_in_the_table_is_untouched():
    model = base()
    exchange(nn.Linear, lambda old: EetqLinear(old.in_features, old.out_features))(model)
    relay_hf.patch_model(model, policy="always")
    decision = model.relay.explain(**INPUTS, max_new_tokens=8)  # it runs on GPUs alone
    assert not decision.relayed
    assert decision.reason.startswith(f"EetqLinear (module {FIRST!r}) runs transformers.integrations.eetq.EetqLinear")


def test_a_layer_of_the_table_is_known_with_its_own_forward_alone(monkeypatch):
    name = "hqq, 8 bits"
    models = pair(name)
    assert_relayed(models, INPUTS)
    kind = type(models[1].get_submodule(FIRST))
    forward = kind.forward

    def other(self, hidden):
        return forward(self, hidden + hidden.mean(dim=1, keepdim=True))

    monkeypatch.setattr(kind, "forward", other)
    assert_untouched(models, INPUTS, f"HQQLinear (module {FIRST!r}) runs {other.__module__}.")
