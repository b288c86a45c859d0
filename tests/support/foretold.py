"""Whether `explain` says ahead of a call what the call's report says after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import relay_hf.generation.hooks

# What a report has of what is decided; bytes, graphs and backends come later.
FORETOLD = (
    "relayed",
    "reason",
    "reason_code",
    "reason_source",
    "rows",
    "prefix_length",
    "prefix_tokens_reused",
    "prompt_tokens_computed",
    "prompt_tokens_saved",
    "levels",
    "expected_saving_seconds",
)


def differences(said: relay_hf.RelayReport, report: relay_hf.RelayReport) -> list[str]:
    """The fields in which a report is not what `explain` said."""
    return [name for name in FORETOLD if getattr(said, name) != getattr(report, name)]


def state_of(relay: Any) -> Any:
    """What a call changes, and `explain` does not: report, totals, findings, kept prefixes by use, random numbers."""
    findings = relay._hooks.findings.refusal, relay._hooks.findings.unexplained, set(relay._hooks.findings.told)
    kept = [(id(each), len(each)) for each in relay.prefixes]
    return id(relay.last), relay.stats(), findings, kept, torch.get_rng_state().tolist()


def ask_before_each_call(monkeypatch: pytest.MonkeyPatch, may_differ: Callable[[Any, dict[str, Any]], bool]) -> None:
    """From now on each generate() of a patched model is explained first, and its report compared at its end.

    Args:
        monkeypatch: undoes it.
        may_differ: whether a call, with its named arguments, may do otherwise than was said.
    """
    inner = relay_hf.generation.hooks.generate

    def generate(call, stock, args, kwargs):
        relay, error = call.facts.view.model.relay, None
        before = state_of(relay)
        try:
            said = relay.explain(*args, **kwargs)
        except Exception as raised:
            error = raised
        assert state_of(relay) == before
        if error is not None:
            with pytest.raises(type(error)) as found:
                inner(call, stock, args, kwargs)
            assert str(found.value) == str(error)
            raise found.value
        outputs = inner(call, stock, args, kwargs)
        assert not differences(said, call.report) or may_differ(call, kwargs), (said, call.report)
        return outputs

    monkeypatch.setattr(relay_hf.generation.hooks, "generate", generate)
