"""What fails when a call has ended, in its bookkeeping, takes neither its tokens nor its own exception away."""

import copy
import logging

import pytest
import torch

import relay_hf
from relay_hf import RelayCache
from relay_hf.cache_utils.layer import RelayLayer
from relay_hf.testing import prompts
from tests.support.generating import CACHE, generate
from tests.support.tiny_models import tiny_model

from .inject import KINDS

INPUTS = prompts(20, (3, 7, 1, 5))


class Own(Exception):
    """The caller's."""


def fail_at_token(input_ids, scores):
    raise Own


@pytest.fixture
def pair():
    stock = tiny_model("llama")
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


def break_counting(monkeypatch):
    monkeypatch.setattr(RelayCache, "nbytes", lambda self: 1 // 0)


def break_logging(monkeypatch):
    class Broken(logging.Handler):
        def emit(self, record):
            raise ValueError("a broken handler")

    log = logging.getLogger("relay_hf")
    monkeypatch.setattr(log, "handlers", [Broken()])
    monkeypatch.setattr(log, "level", logging.INFO)
    log.manager._clear_cache()


def mend_logging():
    logging.getLogger("relay_hf").manager._clear_cache()


@pytest.mark.parametrize("broken", [break_counting, break_logging])
def test_the_tokens_or_the_callers_own_exception_come_through(broken, pair, monkeypatch):
    stock, model = pair
    expected = generate(stock, INPUTS)
    try:
        with monkeypatch.context() as patch:
            broken(patch)
            assert torch.equal(generate(model, INPUTS), expected)
            assert model.relay.last.relayed
            with pytest.raises(Own):
                generate(model, INPUTS, stopping_criteria=[fail_at_token])
    finally:
        mend_logging()
    assert model.relay.stats().calls == 2
    assert torch.equal(generate(model, INPUTS), expected)
    relay_hf.unpatch_model(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_cache_that_can_not_take_what_was_generated_is_empty(kind, pair, monkeypatch, caplog):
    stock, model = pair
    relay_hf.patch_model(model, policy="off")
    cache, taken, adopt = RelayCache(model.config), [], RelayLayer.adopt_kv

    def fail(self, *args):
        taken.append(self)
        if len(taken) == 2:
            raise KINDS[kind]()
        adopt(self, *args)

    monkeypatch.setattr(RelayLayer, "adopt_kv", fail)
    if kind == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            generate(model, INPUTS, **{CACHE: cache})
    else:
        assert torch.equal(generate(model, INPUTS, **{CACHE: cache}), generate(stock, INPUTS))
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "could not take what was generated, and is empty" in warning.getMessage()
        assert model.relay.stats().calls == 1
    assert len(taken) == 2
    assert not cache.is_filled
    assert cache.get_seq_length() == 0
    monkeypatch.undo()
    relay_hf.patch_model(model, policy="always")
    assert torch.equal(generate(model, INPUTS, **{CACHE: cache}), generate(stock, INPUTS))
    assert model.relay.last.relayed
