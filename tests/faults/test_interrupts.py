"""An interrupt at any line of relay_hf that a call runs through, as Ctrl-C comes."""

from contextlib import suppress

import pytest

import relay_hf
from helpers import members
from relay_hf import patching
from relay_hf.testing import tiny_model

from .inject import Fault, Lines, one_of_each
from .modes import MODES

POINTS = {"batch": 45, "one row": 20, "levels": 20, "beams": 10, "recurrent": 10}


@pytest.mark.parametrize("mode", POINTS, indirect=True)
def test_the_model_stays_usable(mode, request):
    name = request.node.callspec.params["mode"]
    with Lines(Fault("interrupt", None)) as lines:
        mode.call(mode.model)
    fired = 0
    for at in one_of_each(lines.sites, list(MODES).index(name), POINTS[name]):
        mode.prepare()
        fault = Fault("interrupt", at)
        try:
            with Lines(fault):
                mode.call(mode.model)
        except KeyboardInterrupt:
            fired += 1
        else:
            assert fault.where is None  # a set in another order had fewer lines
        mode.assert_usable()
    assert fired > 0.8 * POINTS[name]


@pytest.mark.parametrize("change", ["patch", "unpatch"])
def test_a_model_that_is_patched_or_unpatched_can_still_be_undone(change):
    """At no line of `patching.py` is a patch left that `unpatch_model` does not take off, or any beside its handle."""
    model = tiny_model("llama")
    before = members(model)
    at, fault = 0, None
    while fault is None or fault.where is not None:
        if change == "unpatch":
            relay_hf.patch_model(model)
        fault = Fault("interrupt", at)
        with suppress(KeyboardInterrupt), Lines(fault, patching.__file__):
            {"patch": relay_hf.patch_model, "unpatch": relay_hf.unpatch_model}[change](model)
        if not hasattr(model, "relay"):
            assert members(model) == before
        elif change == "patch":
            assert {"generate", "_prefill", "train"} <= set(vars(model))
            assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
        relay_hf.unpatch_model(model)
        assert members(model) == before
        at += 1
    assert at > 20
