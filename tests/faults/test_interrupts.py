"""An interrupt at any line of relay_hf that a call runs through, as Ctrl-C comes."""

from contextlib import suppress

import pytest

from .check import assert_let_go
from .inject import Fault, Lines, one_of_each
from .modes import MODES

ENDS = {"_finish", "finish"}
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


@pytest.mark.parametrize("mode", ["batch"], indirect=True)
def test_every_line_at_which_a_call_ends_lets_go_of_its_memory_at_once(mode):
    with Lines(Fault("interrupt", None)) as lines:
        mode.call(mode.model)
    ends = [at for at, (code, _) in enumerate(lines.sites) if code.co_name in ENDS]
    assert {lines.sites[at][0].co_name for at in ends} == ENDS
    for at in ends:
        mode.model.relay.clear()
        with suppress(KeyboardInterrupt), Lines(fault := Fault("interrupt", at)):
            mode.call(mode.model)
        assert fault.where is not None
        assert_let_go(mode.model, mode.before, mode.caches)
