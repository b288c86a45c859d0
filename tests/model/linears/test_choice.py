"""Where linear layers are left to PyTorch, each case with its reason; and what the choice is made of."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import relay_hf
from relay_hf.generation.cost_model import Machine, ModelCost, Shape, expected_gain, run_gain
from relay_hf.model.linears import choice, onednn
from relay_hf.testing import prompts
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

INPUTS = prompts(20, (3, 7, 1, 5))
FORBIDDEN = "autocast, a mode, or a setting of PyTorch's"


def reason(model, call=generate):
    call(model, INPUTS)
    assert model.relay.last.relayed, model.relay.last
    assert model.relay.last.linears == ("pytorch" if model.relay.last.linears_reason else "onednn")
    return model.relay.last.linears_reason


def patched(model_type="llama", linears=True, **options):
    return relay_hf.patch_model(tiny_model(model_type), policy="always", linears=linears, **options)


def test_an_option_turns_them_off_and_on():
    model = patched(linears=False)
    assert reason(model) == "the option linears is False"
    relay_hf.patch_model(model, linears=True)
    assert reason(model) == ""
    assert model.relay.last.prefix_tokens_reused == 0, "what PyTorch's products gave is not used beside oneDNN's"
    with pytest.raises(ValueError, match="linears must be one of 'auto', True, False; got 'mkl'"):
        relay_hf.patch_model(model, linears="mkl")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = relay_hf.patch_model(tiny_model("llama").to(dtype), policy="always", linears=True)
    assert reason(model) == f"the model computes in {str(dtype)[6:]}, and the operator is for float32"


def _single_precision():
    before = torch.backends.mkldnn.matmul.fp32_precision

    @contextlib.contextmanager
    def set_to_less():
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            torch.backends.mkldnn.matmul.fp32_precision = before

    return set_to_less()


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.backends.mkldnn.flags(enabled=False),
        _single_precision,
        Mode,
    ],
    ids=["autocast", "oneDNN off", "bfloat16 products", "a mode"],
)
def test_settings_that_the_operator_does_not_know(around):
    model = patched(trust=[""])

    def call(model, inputs):
        with around():
            generate(model, inputs)

    assert reason(model, call).startswith(FORBIDDEN)
    assert reason(model) == ""


def test_a_default_device_is_no_obstacle():
    def call(model, inputs):
        with torch.device("cpu"):
            generate(model, inputs)

    assert reason(patched(), call) == ""


def test_a_compiled_layer():
    model = patched()
    model.model.layers[0].mlp.compile(backend="eager")
    assert reason(model) == "torch.compile has compiled the model, or a part of it"


def test_replaced_functions(monkeypatch):
    model, linear = patched(trust=[""]), nn.functional.linear
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", lambda *given: linear(*given))
        assert reason(model) == "PyTorch's linear layer, or Transformers', was replaced"
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x))
    relay_hf.patch_model(model, trust=["*"])
    assert reason(model) == "PyTorch's linear layer, or Transformers', was replaced"


def test_an_operator_that_is_not_there_or_wrong(monkeypatch):
    model, linear = patched(), onednn.linear
    monkeypatch.setattr(onednn, "linear", lambda x, weight, bias: linear(x, weight, None))
    with cleared():
        assert "is wrong for the shapes" in reason(model)
    monkeypatch.setattr(onednn, "linear", lambda *given: torch.ops.mkldnn.nothing_of_this_name(*given))
    with cleared():
        assert reason(model).endswith("can't be used: AttributeError")


@contextlib.contextmanager
def cleared():
    onednn.fault.cache_clear()
    try:
        yield
    finally:
        onednn.fault.cache_clear()


def test_layers_that_are_not_plain():
    """Each of them keeps its own code, and the others are computed by oneDNN."""
    stock = tiny_model("llama")
    first, second = (layer.self_attn for layer in stock.model.layers)
    first.q_proj.forward = lambda x: nn.functional.linear(x, first.q_proj.weight) * 1.5
    second.q_proj.__class__ = type("Other", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})
    found = choice.choose([*stock.modules()], torch.device("cpu"), torch.float32, True)
    assert len(found.modules) == sum(isinstance(each, nn.Linear) for each in stock.modules()) - 2
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always", linears=True, trust=["*"])
    ours.model.layers[0].self_attn.q_proj.forward = first.q_proj.forward
    assert torch.equal(generate(ours, INPUTS), generate(stock, INPUTS))
    assert ours.relay.last.linears == "onednn"


def test_auto_takes_large_layers_where_the_operator_is_faster(monkeypatch):
    modules = [nn.Linear(64, 64), nn.Linear(512, 512)]
    for speedup, count in ((1.2, 0), (1.3, 2)):
        monkeypatch.setattr(onednn, "speedup", lambda threads, speedup=speedup: speedup)
        found = choice.choose(modules, torch.device("cpu"), torch.float32, "auto")
        assert (len(found.modules), found.speedup) == (count, 1.3 if count else 1.0)
        assert ("not faster on this processor (1.20 times" in found.why_not) == (count == 0)
    parameters = 64 * 64 + 512 * 512
    assert found.speedup_of(1, parameters) == 1.0, "a single row is too little work for both"
    assert 1.28 < found.speedup_of(16, parameters) < found.speedup_of(1000, parameters) == pytest.approx(1.3)


def test_the_measurement_draws_no_random_numbers():
    """A generator of random numbers is the caller's: sampling would give other tokens."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    onednn._measured.cache_clear()
    assert onednn.speedup(torch.get_num_threads()) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert onednn.fault() is None


def test_the_cost_model_knows_their_speed():
    cost = ModelCost(parameters=85_000_000, itemsize=4, layers=12, kv_bytes=6144)
    machines = [Machine(flops=4e11, bandwidth=2e10, layer_overhead=1.2e-4, linears=each) for each in (1.0, 2.0)]
    shape = Shape(rows=4, new=32, runs=((64, 4, False),), forwards=1, computed=64 + 4 * 32)
    plain, faster = (expected_gain(shape, cost, machine) for machine in machines)
    prefill, steps = (64 + 4 * 32) * cost.parameters * 2 / 4e11 / 2, 32 * cost.parameters * 4 / 2e10 / 2
    assert faster - plain == pytest.approx(prefill + steps, rel=0.15), "and the prefix's pass over the weights"
    gains = [run_gain(256, 4, False, 0, cost, machine) for machine in machines]
    assert gains[0] > gains[1] > 0, "what is not computed is saved at the speed that it would have"
