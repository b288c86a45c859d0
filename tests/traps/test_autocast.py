"""Autocast: what is kept under one precision is not what a call under another would have computed."""

import pytest
import torch

from relay_hf.model.device import ComputeContext
from relay_hf.testing import prompts

from .compare import LEAST_WRONG, error, pair, run

INPUTS = prompts(20, (3, 7, 1, 5))
PRECISIONS = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SWITCHES = [("none", "bfloat16"), ("bfloat16", "none"), ("bfloat16", "float16")]


def under(precision, model, inputs=INPUTS, **options):
    dtype = PRECISIONS[precision]
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        return run(model, inputs, **options)


def rms(expected, got):
    """Of the first tokens' logits: what follows hangs on which tokens they choose."""
    return float((expected.logits[0].float() - got.logits[0].float()).square().mean().sqrt())


# Attention of the operator, plain and with softcap and windows; attention of the model's own.
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mistral", "gemma2", "bloom"])
def test_a_call_under_autocast_is_as_near_to_float32_as_stock_is(model_type):
    """The relay rounds elsewhere, not more often: measured is 0.8 to 1.0 of stock's error."""
    stock, ours = pair(model_type)
    exact = run(stock, INPUTS)
    stocks_error = rms(exact, under("bfloat16", stock))
    for reused in (0, 20):
        got = under("bfloat16", ours)
        assert ours.relay.last.relayed, ours.relay.last
        assert ours.relay.last.prefix_tokens_reused == reused
        assert got.logits[0].dtype == under("bfloat16", stock).logits[0].dtype
        assert 0 < rms(exact, got) < 1.5 * stocks_error


@pytest.mark.parametrize(("first", "second"), SWITCHES)
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "bloom"])
def test_a_prefix_kept_under_one_precision_is_not_used_under_another(model_type, first, second):
    """To the last bit what it is where nothing was kept before; and the first precision's prefix is still there."""
    ours = pair(model_type)[1]
    cold = under(second, ours)
    ours.relay.clear()
    under(first, ours)
    for reused in (0, 20):
        assert error(cold, under(second, ours)) == 0
        assert ours.relay.last.relayed, ours.relay.last
        assert ours.relay.last.prefix_tokens_reused == reused
    under(first, ours)
    assert ours.relay.last.prefix_tokens_reused == 20


def one_context(monkeypatch):
    monkeypatch.setattr(ComputeContext, "of", classmethod(lambda kind, model: "any"))


@pytest.mark.parametrize(("first", "second"), SWITCHES[:2])
def test_precisions_need_to_be_told_apart(first, second, monkeypatch):
    """Where the operator computes a softcap, keys of another precision are silently taken."""
    one_context(monkeypatch)
    ours = pair("gemma2")[1]
    cold = under(second, ours)
    ours.relay.clear()
    under(first, ours)
    assert error(cold, under(second, ours)) > LEAST_WRONG
    assert ours.relay.last.prefix_tokens_reused == 20


@pytest.mark.parametrize(("first", "second"), SWITCHES)
def test_elsewhere_two_precisions_do_not_go_together(first, second, monkeypatch):
    one_context(monkeypatch)
    ours = pair("llama")[1]
    under(first, ours)
    under(second, ours)
    assert "a relayed prefill raised RuntimeError: expected scalar type" in ours.relay.last.reason
