"""What every trap is held to: stock's output and the status by name; and, with its guard removed, another output."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import relay_hf
from relay_hf.attention import layer
from relay_hf.generation import eligibility
from tests.models.trial import TOLERANCE
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

# A guard is needed where without it the logits are this far off: ten times what passes for equal.
LEAST_WRONG = 10 * TOLERANCE
NEW = 8  # tokens

# The tests run with the oldest supported Transformers and with this one or a later one, and none between.
RECENT = int(transformers.__version__.split(".")[1]) >= 23

Models = tuple[PreTrainedModel, PreTrainedModel]


def pair(model_type: str, **overrides: Any) -> Models:
    """A tiny stock model, and a patched copy of it."""
    return beside_a_patched_copy(tiny_model(model_type, **overrides))


def beside_a_patched_copy(stock: Any) -> Any:
    return stock, relay_hf.patch_model(copy.deepcopy(stock), policy="always")


def run(model: Any, inputs: dict[str, Any], new: int = NEW, **options: Any) -> Any:
    """Greedy tokens, as many as asked for, and their logits."""
    wanted = {"return_dict_in_generate": True, "output_logits": True}
    return generate(model, inputs, max_new_tokens=new, min_new_tokens=new, **wanted, **options)


def then(first: Any, inputs: dict[str, Any], more: int = 4) -> dict[str, Tensor]:
    """A second turn, of `more` tokens, on what a call with `inputs` returned."""
    rows, columns = first.sequences.shape
    turn = torch.arange(5, 5 + rows * more).view(rows, more)
    added = columns + more - inputs["attention_mask"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)
    return {"input_ids": torch.cat([first.sequences, turn], dim=1), "attention_mask": mask}


def error(expected: Any, got: Any) -> float:
    """How far the logits are off, relative to their scale (1 at least); infinite where a token is another."""
    if not torch.equal(expected.sequences, got.sequences):
        return float("inf")
    off = max(float((a.float() - b.float()).abs().max()) for a, b in zip(expected.logits, got.logits, strict=True))
    return off / max(1.0, max(float(logits.abs().max()) for logits in expected.logits))


def assert_relayed(models: Models, inputs: dict[str, Any], prefix: int = 20, **options: Any) -> None:
    """Stock's output, relayed both times: with the prefix prefilled, then kept."""
    stock, ours = models
    ours.relay.clear()
    for reused in (0, prefix):
        assert error(run(stock, inputs, **options), run(ours, inputs, **options)) <= TOLERANCE
        report = ours.relay.last
        assert (report.relayed, report.prefix_length, report.prefix_tokens_reused) == (True, prefix, reused), report


def assert_untouched(models: Models, inputs: dict[str, Any], reason: str, **options: Any) -> None:
    """Stock's output twice, with the reason given: the second call may have learnt from the first."""
    stock, ours = models
    ours.relay.clear()
    for _ in range(2):
        assert error(run(stock, inputs, **options), run(ours, inputs, **options)) <= TOLERANCE
        report = ours.relay.last
        assert not report.relayed, report
        assert reason in report.reason, report


def assert_wrong(models: Models, inputs: dict[str, Any], **options: Any) -> None:
    """Relayed, and not stock's output: what the guard that the test has removed is there for."""
    stock, ours = models
    ours.relay.clear()
    off = error(run(stock, inputs, **options), run(ours, inputs, **options))
    assert ours.relay.last.relayed, ours.relay.last
    assert off > LEAST_WRONG


def leave_out(monkeypatch: Any, name: str) -> None:
    """Attention without one of its arguments: "sliding_window", "softcap" or "sinks"."""
    attend = layer.attend
    monkeypatch.setattr(layer, "attend", lambda *args, **how: attend(*args, **{**how, name: None}))


def all_inputs_known(monkeypatch: Any) -> None:
    """No input of a forward is refused for its name."""

    class Everything:
        def __contains__(self, name: str) -> bool:
            return True

    monkeypatch.setattr(eligibility, "KNOWN_INPUTS", Everything())
