"""A fault in any operation of a call whose decode steps are recorded, captured and replayed."""

import pytest
import torch

from relay_hf import patch_model
from relay_hf.testing import prompts
from tests.graphs.conftest import graphs
from tests.support.generating import generate
from tests.support.model_snapshot import members
from tests.support.sweeps import all_but_swept
from tests.support.tiny_models import tiny_model

from .check import assert_whole
from .inject import KINDS, Fault, Operations, one_of_each

__all__ = ["graphs"]
INPUTS = prompts(20, (3, 5))


@pytest.mark.parametrize("kept", [False, True], ids=["captured", "kept"])
@pytest.mark.parametrize("kind", all_but_swept(["error", "interrupt", "memory"]))
def test_the_model_stays_usable(graphs, kind, kept):
    """A capture that fails leaves steps as they are; all else is as without graphs."""
    model = tiny_model("llama")
    expected = generate(model, INPUTS)
    patch_model(model, policy="always", cuda_graphs=True)
    generate(model, INPUTS)
    before = members(model)

    def prepare():
        model.relay.clear()
        if kept:
            generate(model, INPUTS)

    prepare()
    with Operations(Fault(kind, None)) as operations:
        generate(model, INPUTS)
    for at in one_of_each(operations.sites, sorted(KINDS).index(kind), 4):
        prepare()
        error = tokens = None
        try:
            with Operations(Fault(kind, at)):
                tokens = generate(model, INPUTS)
        except BaseException as raised:
            error = type(raised), str(raised)
        if error is None:
            assert torch.equal(tokens, expected)
        else:
            assert error == (type(KINDS[kind]()), str(KINDS[kind]()))
        assert kind != "interrupt" or error is not None
        assert members(model) == before
        assert_whole(model)
        model.relay.clear()
        assert torch.equal(generate(model, INPUTS), expected)
        assert model.relay.last.relayed, model.relay.last
        assert model.relay.last.graph_steps == 10, model.relay.last.graph_reason
