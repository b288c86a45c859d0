"""Fixtures of all tests."""

import importlib.util
import logging
import os

# Before anything imports Triton: its kernels run in its interpreter, on the CPU.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from transformers.utils import logging as transformers_logging

# Tiny models gain nothing from threads, and lose much where tests run side by side.
torch.set_num_threads(1)

# They need what requirements/docs.txt has: `make test-notebooks` installs it, and runs them.
collect_ignore = [] if importlib.util.find_spec("nbclient") else ["notebooks"]


def pytest_addoption(parser):
    parser.addoption("--all-types", action="store_true", help="try every model type with an older Transformers too")


class _RaiseOnDeprecation(logging.Handler):
    """Transformers says most of its deprecations through its logger; a test in which it says one fails."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message.lower() or "will be removed" in message.lower():
            raise DeprecationWarning(message)


@pytest.fixture(autouse=True)
def no_deprecations():
    logger = transformers_logging.get_logger("transformers")
    handler = _RaiseOnDeprecation()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
