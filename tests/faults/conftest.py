"""Each mode's models, made once."""

import logging
from functools import cache

import pytest

from .modes import Mode, uncollected

mode_of = cache(Mode)


@pytest.fixture
def mode(request):
    found, log = mode_of(request.param), logging.getLogger("relay_hf")
    log.disabled = True  # pytest keeps what is logged, tracebacks and all that their frames hold
    with uncollected():
        found.prepare()
        yield found
    log.disabled = False
    found.model.relay.clear()
