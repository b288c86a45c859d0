"""`model.relay.explain()`: the report that a generate() call would have, without running it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from ..model.upstream.behaviour import DEFAULT_NEW_TOKENS
from ..model.upstream.models import count_positions
from ..model.vocabulary import check_vocabulary
from ..prefix import outline
from ..report import Explanation
from .decide import decide
from .facts import CallFacts, PrefillInputs


def explain(facts: CallFacts, input_ids: Tensor, attention_mask: Tensor | None) -> Explanation:
    """The report of a call that is not run."""
    view = facts.view
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be [rows, tokens]; got {tuple(input_ids.shape)}.")
    check_vocabulary(view.model, input_ids, "input_ids")
    inputs: dict[str, Any] = {"attention_mask": attention_mask, view.cache_name: view.default_cache()}
    if "position_ids" in view.forward_inputs:
        inputs["position_ids"] = count_positions(view.model, view.modules, input_ids, attention_mask)
    config = copy.deepcopy(view.model.generation_config)
    if config.max_new_tokens is not None or config.max_length is None:
        config.max_length = input_ids.shape[1] + (config.max_new_tokens or DEFAULT_NEW_TOKENS)
    decision = decide(facts, PrefillInputs(input_ids, config, inputs))
    found = Explanation(**vars(decision.report()), tree=outline(decision.runs))
    if found.relayed:
        found.backend = "model" if view.architecture.own_attention else view.backend(facts.config.backend)
    return found
