"""What all modes are held to: stock's output to the last field, cold and with the prefix kept, and the status."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Cache, PreTrainedModel

import relay_hf
from relay_hf.testing import prompts
from tests.support.tiny_models import tiny_model

# Plain attention; learned positions; softcap and windows; sinks, windows and experts; latents.
FAMILIES = ("llama", "gpt2", "gemma2", "gpt_oss", "deepseek_v3")
# One layer of each kind: what is wrong in several is wrong in one, and there are many modes.
ONE_OF_EACH = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
OVERRIDES = {"gemma2": ONE_OF_EACH, "gpt_oss": ONE_OF_EACH}
TOLERANCE = 1e-4
PREFIX = 20
NEW = 5  # tokens
INPUTS = prompts(PREFIX, (3, 7, 1, 5))
ONE = {name: value[1:2] for name, value in INPUTS.items()}  # the row without padding
NO_PREFILL = "this mode of generate() does not start with its common prefill"

Models = tuple[PreTrainedModel, PreTrainedModel]
Call = Callable[[PreTrainedModel], Any]


@functools.cache
def build_pair(family: str, **overrides: Any) -> Models:
    """A stock model, and a patched copy of it."""
    stock = tiny_model(family, **OVERRIDES.get(family, {}), **overrides)
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


def generate(model: PreTrainedModel, inputs: dict = INPUTS, **options: Any) -> Any:
    """A few tokens, and all that the loop can say about them."""
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    return model.generate(**inputs, **{"max_new_tokens": NEW, **wanted, **options})


def seeded(call: Call, model: PreTrainedModel) -> Any:
    torch.manual_seed(1)
    return call(model)


def assert_same(got: Any, expected: Any) -> None:
    """Equal in structure; integers equal, floats close. Caches hold the same in their own ways: equally long."""
    if isinstance(expected, Cache):
        assert got.get_seq_length() == expected.get_seq_length()
        return
    assert type(got) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE if expected.is_floating_point() else 0)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        assert_same([*got.values()], [*expected.values()])
    elif isinstance(expected, (tuple, list)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert got == expected


def assert_relayed(
    models: Models, call: Call, rows: int = 4, prefix: int = PREFIX, backend: str = "torch", before: int = 0
) -> Any:
    """The call gives stock's output, relayed both times: with the prefix prefilled, then kept. Returns that output.

    `before`: tokens that are kept by the time the call looks for them first.
    """
    stock, ours = models
    expected = seeded(call, stock)
    ours.relay.clear()
    for reused in (before, prefix):
        assert_same(seeded(call, ours), expected)
        report = ours.relay.last
        assert report.relayed, report
        assert (report.rows, report.prefix_length, report.prefix_tokens_reused) == (rows, prefix, reused), report
        assert report.backend == backend
    return expected


def assert_relayed_alone(models: Models, call: Call) -> Any:
    """A call of one row gives stock's output: kept whole, then going on from what is kept, then on a kept prefix.

    Returns that output.
    """
    stock, ours = models
    expected = seeded(call, stock)
    ours.relay.clear()
    for reason, reused in (("kept for later calls", 0), ("a kept prefix", ONE["input_ids"].shape[1] - 1)):
        assert_same(seeded(call, ours), expected)
        report = ours.relay.last
        assert (report.relayed, report.reason, report.prefix_tokens_reused) == (True, reason, reused), report
    ours.relay.clear()
    keep_prefix(ours)
    assert_same(seeded(call, ours), expected)
    report = ours.relay.last
    assert report.relayed, report
    assert (report.rows, report.prefix_length, report.prefix_tokens_reused) == (1, PREFIX, PREFIX), report
    return expected


def assert_untouched(models: Models, call: Call, reason: str) -> Any:
    """The call gives stock's output with that reason, with nothing kept and with the prefix kept. Returns it."""
    stock, ours = models
    expected = seeded(call, stock)
    ours.relay.clear()
    for prepare in (lambda model: None, keep_prefix):
        prepare(ours)
        assert_same(seeded(call, ours), expected)
        assert_reason(ours, reason)
    return expected


def assert_same_error(models: Models, call: Call, match: str, reason: str | None = None) -> None:
    """Both models raise the same: one type, one message."""
    stock, ours = models
    ours.relay.clear()
    with pytest.raises(Exception, match=match) as expected:
        seeded(call, stock)
    with pytest.raises(expected.type) as raised:
        seeded(call, ours)
    assert raised.type is expected.type
    assert str(raised.value) == str(expected.value)
    assert_reason(ours, reason or f"the call raised {expected.type.__name__}")


def assert_reason(ours: PreTrainedModel, reason: str) -> None:
    report = ours.relay.last
    assert not report.relayed, report
    assert reason in report.reason, report
    assert (report.backend, report.prefix_tokens_reused, report.prompt_tokens_saved, report.kv_bytes) == (
        "stock",
        0,
        0,
        None,
    )


def keep_prefix(ours: PreTrainedModel) -> None:
    """Have the prefix of INPUTS kept, as an earlier call would."""
    ours.relay.warm(ONE["input_ids"][0, :PREFIX])
