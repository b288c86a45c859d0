"""repeng: control vectors, which it adds to the output of layers that it has wrapped."""

import copy

import numpy
import pytest
import torch

import relay_hf
from relay_hf.testing import prompts
from tests.support.tiny_models import tiny_model
from tests.traps.compare import assert_relayed, error, run

INPUTS = prompts(20, (3, 7, 1, 5))
LAYERS = [0, 1]


@pytest.fixture
def repeng(monkeypatch):
    """The package names a type that NumPy 2 does not have, where it says what its operators take."""
    monkeypatch.setattr(numpy, "float_", numpy.float64, raising=False)
    import repeng

    return repeng


@pytest.mark.parametrize("normalize", [False, True])
def test_controlled_layers_are_untouched_until_they_are_unwrapped(repeng, normalize):
    stock = tiny_model("llama")
    ours = relay_hf.patch_model(copy.deepcopy(stock), policy="always")
    plain = run(stock, INPUTS)
    assert_relayed((stock, ours), INPUTS)
    controlled = [repeng.ControlModel(model, LAYERS) for model in (stock, ours)]
    directions = torch.randn(len(LAYERS), 32, generator=torch.Generator().manual_seed(0))
    for model in controlled:
        model.set_raw_control(dict(zip(LAYERS, directions, strict=True)), normalize=normalize)
    expected = run(controlled[0], INPUTS)
    assert error(expected, run(controlled[1], INPUTS)) == 0
    assert error(expected, plain) > 0.1
    reason = ours.relay.last.reason
    assert reason.startswith("ControlModule (module 'model.layers.0') runs repeng.control.ControlModule, ")
    for model in controlled:
        model.unwrap()
    assert error(plain, run(stock, INPUTS)) == 0
    assert_relayed((stock, ours), INPUTS)
