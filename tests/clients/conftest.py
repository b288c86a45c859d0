"""What all clients are tried on: a small model with a tokenizer, a patched copy of it, and what it reports."""

import copy
import logging

import pytest

import relay_hf
from relay_hf import showcase
from relay_hf.report import RelayReport


@pytest.fixture
def shown():
    """A stock model that knows the words of its tokenizer alone, and that knows where a turn ends."""
    shown = showcase.load("random", size="tiny")
    shown.model.resize_token_embeddings(len(shown.tokenizer))
    shown.model.eval()  # the new embeddings come in training mode
    shown.tokenizer.eos_token = "<|im_end|>"
    return shown


@pytest.fixture
def tokenizer(shown):
    return shown.tokenizer


@pytest.fixture
def stock(shown):
    return shown.model


@pytest.fixture
def ours(stock):
    """A patched copy. So small a model is relayed by policy "always" alone."""
    return relay_hf.patch_model(copy.deepcopy(stock), policy="always")


@pytest.fixture
def reports(caplog):
    """Gives the reports of all generate() calls since it was last asked."""
    caplog.set_level(logging.INFO, logger="relay_hf")

    def taken():
        arguments = [argument for record in caplog.records if record.name == "relay_hf" for argument in record.args]
        caplog.clear()
        return [argument for argument in arguments if isinstance(argument, RelayReport)]

    return taken
