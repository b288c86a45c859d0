"""The calls of a case: generate() of both models on the same inputs, and what comes before and after the first one."""

from __future__ import annotations

import copy
import inspect
import re
import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel

import relay_hf
from relay_hf.model.upstream.names import CACHE
from relay_hf.testing import PAD
from tests.support.foretold import state_of

from .caches import USES
from .case import Case
from .compare import Result
from .models import Pair

Results = tuple[Result, Result]  # stock's and the patched model's
Inputs = dict[str, Tensor]


class SumsDecide(LogitsProcessor):
    """A processor that looks at all ids, so that it sees any change of what the loop holds."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Lower the scores of even tokens by the sum of the ids."""
        even = torch.arange(scores.shape[1]) % 2 == 0
        return scores - 0.1 * (input_ids.sum(dim=1, keepdim=True) % 5) * even


def both(
    case: Case, pair: Pair, inputs: Inputs, options: dict[str, Any], caches: tuple[Any, Any] = (None, None)
) -> Results:
    """What generate() of both gives, or raises; `explain` is asked first what ours will do."""
    stock = _generate(case, pair.stock, inputs, options, caches[0])
    ours = _generate(case, pair.ours, inputs, options, caches[1], pair.ours.relay)
    ours.report = pair.ours.relay.last
    return stock, ours


def _generate(
    case: Case, model: PreTrainedModel, inputs: Inputs, options: dict[str, Any], cache: Any, relay: Any = None
) -> Result:
    arguments = {**{name: value.clone() for name, value in inputs.items()}, **copy.deepcopy(options)}
    if case.processor:
        arguments["logits_processor"] = LogitsProcessorList([SumsDecide()])
    if cache is not None:
        arguments[CACHE] = cache
    torch.manual_seed(case.number % 2**31)
    result = Result()
    if relay is not None:
        before, unfit = state_of(relay), relay._hooks.findings.refusal
        try:
            result.said = relay.explain(**arguments)
        except Exception as error:
            result.said = _words(error)
        result.left_as_it_was = state_of(relay) == before
    try:
        result.output = model.generate(**arguments)
    except Exception as error:
        result.error = _words(error)
    result.random_state = torch.get_rng_state()
    if relay is not None and relay._hooks.findings.refusal is not unfit:
        result.learnt = relay._hooks.findings.refusal
    return result


def _words(error: Exception) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x", f"{type(error).__name__}: {error}")


def prepare(case: Case, pair: Pair) -> relay_hf.RelayCache | None:
    """What comes before the first pass: a prefix warmed for it, or a cache to be given to the patched model."""
    try:
        if case.start in ("warm", "file"):
            inputs = case.batch.tensors()
            tokens = inputs["input_ids"][0]
            if "attention_mask" in inputs:
                tokens = tokens[inputs["attention_mask"][0].bool()]
            pair.ours.relay.warm(tokens[: max(len(tokens) * 2 // 3, 1)], prefill_chunk_size=case.number % 9 + 2)
        takes_one = CACHE in inspect.signature(pair.ours.forward).parameters
        if case.start == "by hand" and takes_one and pair.ours._supports_default_dynamic_cache():
            return relay_hf.RelayCache(pair.ours.config)
    except (relay_hf.RelayError, ValueError):
        return None  # a model whose prefixes are not kept, or whose layers a RelayCache does not hold
    if case.start == "file":
        with tempfile.TemporaryDirectory() as folder:
            pair.ours.relay.save(f"{folder}/prefixes")
            pair.ours.relay.clear()
            pair.ours.relay.load(f"{folder}/prefixes")
    return None


def turns(case: Case, pair: Pair, options: dict[str, Any], first: Results) -> list[tuple[str, Results]]:
    """The next turn of the case, if it has one, and can go on from both models' caches; with the pass's name."""
    if case.turn is None or any(result.error for result in first):
        return []
    if case.how == "retold":
        inputs = _turn_inputs(case, first[0].output.sequences)
        return [(name, both(case, pair, inputs, options)) for name in ("retold", "retold again")]
    caches = [getattr(result.output, CACHE, None) for result in first]
    if type(caches[0]) is not DynamicCache or not isinstance(caches[1], (DynamicCache, relay_hf.RelayCache)):
        return []
    inputs = _turn_inputs(case, first[0].output.sequences)
    try:
        caches = [USES[case.used](each) for each in caches] if case.used else caches
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return []  # a state can be neither cropped nor iterated over
    if case.how == "copied":  # and then the original, which must not have noticed
        copies = copy.deepcopy(caches)
        return [
            ("turn on a copy", both(case, pair, inputs, options, (copies[0], copies[1]))),
            ("turn", both(case, pair, inputs, options, (caches[0], caches[1]))),
        ]
    if case.how == "dynamic" and isinstance(caches[1], relay_hf.RelayCache):
        caches[1] = caches[1].to_dynamic()
    return [("turn", both(case, pair, inputs, options, (caches[0], caches[1])))]


def _turn_inputs(case: Case, sequences: Tensor) -> Inputs:
    """What was generated, and the turn's own tokens behind it."""
    assert case.turn is not None
    before, turn = case.batch.tensors(), case.turn.tensors()
    inputs = {"input_ids": torch.cat([sequences, turn["input_ids"]], dim=1)}
    if "attention_mask" in before:
        mask = before["attention_mask"]
        made = torch.ones_like(sequences[:, mask.shape[1] :])
        if case.number % 2:  # without the padding behind an end
            made = (sequences[:, mask.shape[1] :] != PAD).long()
        inputs["attention_mask"] = torch.cat([mask, made.to(mask.dtype), turn["attention_mask"].to(mask.dtype)], dim=1)
    return inputs
