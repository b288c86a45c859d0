"""An interrupt at any line of relay_hf that a call runs through, as Ctrl-C comes."""

import pytest

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
