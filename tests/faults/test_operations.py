"""A fault in any operation that a call runs: in the model's layers, the cache, attention, the store, the loop.

One of the operations of each line of the sources that leads to any, drawn at random.
"""

import pytest
import torch

from tests.support.sweeps import swept

from .inject import KINDS, Fault, Operations, one_of_each
from .modes import MODES

# Functions of relay_hf around what may fail without the caller's seeing it. An error in the prefill is stock's to have
# or not, and a row that can't be kept is not; an interrupt is always seen.
PREFILL, KEEPING = {"decide", "_relayed", "_prefilled"}, {"keep_row"}


def outcome(kind, where):
    """What becomes of a call that a fault comes into."""
    if kind == "interrupt":
        return "raises"
    if KEEPING & set(where):
        return "relayed"
    return "stock" if PREFILL & set(where) else "raises"


# A host's lack of memory is told from other errors in one place: one mode shows that it is told there.
FAULTS = [
    *((kind, "batch") for kind in KINDS),
    *swept((kind, mode) for kind in KINDS for mode in MODES if mode != "batch" and kind != "cpu memory"),
]


@pytest.mark.parametrize(("kind", "mode"), FAULTS, indirect=["mode"])
def test_the_model_stays_usable(mode, kind, request):
    name = request.node.callspec.params["mode"]
    with Operations(clean := Fault(kind, None)) as operations:
        mode.call(mode.model)
    seed = sorted(KINDS).index(kind)
    seen = set()
    for at in one_of_each(operations.sites, seed, 20 if name == "batch" else 5):
        mode.prepare()
        fault = Fault(kind, at)
        error = tokens = None
        try:
            with Operations(fault):
                tokens = mode.call(mode.model)
        except BaseException as raised:
            error = type(raised), str(raised)
        expected = outcome(kind, fault.where)
        if expected == "raises":
            assert error == (type(KINDS[kind]()), str(KINDS[kind]()))
        else:
            assert torch.equal(tokens, mode.expected), fault.where
            assert mode.model.relay.last.relayed == (expected == "relayed"), (mode.model.relay.last, fault.where)
            if expected == "stock":
                assert mode.model.relay.last.reason.startswith("out of memory" if "memory" in kind else "a relayed")
        del tokens
        seen.add(expected)
        mode.assert_usable()
        mode.model.relay.clear()  # two errors in a row would be held against the model
    assert clean.asked > 300
    assert "raises" in seen
    assert kind == "interrupt" or name != "batch" or "stock" in seen
