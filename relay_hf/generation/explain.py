"""What a call would do, without running it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..model.architectures import architecture_of
from ..model.upstream.behaviour import DEFAULT_NEW_TOKENS
from ..model.upstream.models import count_positions
from ..model.vocabulary import check_vocabulary
from ..prefix import outline
from ..report import Explanation
from .call import open_call
from .decide import decide

if TYPE_CHECKING:
    from ..relay import Relay


def explain(relay: Relay, input_ids: Tensor, attention_mask: Tensor | None) -> Explanation:
    """The report of a call that is not run."""
    model = relay.model
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be [rows, tokens]; got {tuple(input_ids.shape)}.")
    check_vocabulary(model, input_ids, "input_ids")
    inputs: dict[str, Any] = {
        "attention_mask": attention_mask,
        relay.cache_name: relay.default_cache(),
    }
    if "position_ids" in relay.forward_inputs:
        inputs["position_ids"] = count_positions(model, open_call().modules, input_ids, attention_mask)
    config = copy.deepcopy(model.generation_config)
    if config.max_new_tokens is not None or config.max_length is None:
        config.max_length = input_ids.shape[1] + (config.max_new_tokens or DEFAULT_NEW_TOKENS)
    decision = decide(relay, input_ids, config, inputs)
    found = Explanation(**vars(decision.report()), tree=outline(decision.runs))
    if found.relayed:
        found.backend = "model" if architecture_of(relay.text_config).parted else relay.backend
    return found
