"""Fixtures of all tests."""

import gc
import importlib.util
import logging
import os
from collections import Counter

# Before anything imports Triton: its kernels run in its interpreter, on the CPU.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from transformers.utils import logging as transformers_logging

from tests.support.counts import tried
from tests.support.interpreter import make_launches_cheap

# Tiny models gain nothing from threads, and lose much where tests run side by side.
torch.set_num_threads(1)
make_launches_cheap()

# They need what requirements/docs.txt, clients.txt, apart.txt and site.txt have: `make test-notebooks`,
# `make test-clients` and `make test-site` install that, and run them.
_NEEDS = {
    "notebooks": ("nbclient",),
    "clients": ("lm_eval", "torchao", "trl"),
    "clients/apart": ("kvpress", "repeng"),
    "site": ("playwright",),
}
collect_ignore = [name for name, needs in _NEEDS.items() if not all(map(importlib.util.find_spec, needs))]


def pytest_addoption(parser):
    parser.addoption("--all-types", action="store_true", help="try every model type with an older Transformers too")


def pytest_collection_finish():
    """What the imports and the collected tests hold is for good: the garbage collector need not look at it again.

    Hundreds of tests collect garbage, to see what a call leaves behind. Each time takes 0.1 to 0.9 s with all this.
    """
    gc.collect()
    gc.freeze()


_sums: Counter[str] = Counter()  # over all processes that run tests


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    item.user_properties += tried.items()  # which reports carry from one process to another
    tried.clear()


def pytest_runtest_logreport(report):
    if report.when == "teardown":
        _sums.update(dict(report.user_properties))


def pytest_terminal_summary(terminalreporter):
    for what, count in sorted(_sums.items()):
        terminalreporter.write_line(f"{count:,} {what}")


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
