"""A heap of which only what is new is looked at."""

import gc

import pytest


@pytest.fixture
def newcomers():
    """Take all that there is out of the collector's sight: a million objects of other tests take it half a second."""

    def hide():
        gc.collect()
        gc.freeze()

    return hide
