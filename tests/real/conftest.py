"""The chat model of the demo, loaded once for each process: stock, and a patched twin that shares its weights."""

import pytest

from relay_hf import showcase
from relay_hf.cli.benchmark.bench import patched_twin


@pytest.fixture(scope="session")
def shown():
    return showcase.load(device="cpu")


@pytest.fixture(scope="session")
def stock(shown):
    return shown.model


@pytest.fixture(scope="session")
def twin(stock):
    return patched_twin(stock, policy="always")


@pytest.fixture
def ours(twin):
    """The patched twin, with nothing kept."""
    twin.relay.clear()
    return twin
