"""The command line in this process, and a model in a folder to give it."""

import pytest
import torch
from transformers.utils import logging

from relay_hf import showcase
from relay_hf.showcase import smollm2

from .command import Ran


@pytest.fixture(autouse=True)
def transformers_speaks_again():
    """Commands silence Transformers for their process, which here is that of all tests."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def no_chat_model(transformers_speaks_again, monkeypatch, tmp_path_factory):
    """Commands find none, whatever this machine has: what they print does not depend on it."""
    monkeypatch.setattr(smollm2, "cache", lambda: tmp_path_factory.getbasetemp())


@pytest.fixture
def run():
    return Ran


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model with its tokenizer, as from_pretrained() takes it."""
    path = tmp_path_factory.mktemp("model[b]")  # no markup
    shown = showcase.load("random", size="tiny", dtype=torch.float32, device="cpu")
    shown.model.save_pretrained(path)
    shown.tokenizer.save_pretrained(path)
    return path
