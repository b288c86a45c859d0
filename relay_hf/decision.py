"""From a generate() call's prompts to what will be shared, and why. Runs nothing."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from . import eligibility, gate
from .call import open_call
from .prefix import KeptPrefix, Prompts, keeping_refusal
from .report import RelayReport

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from .relay import Relay


NO_PROMPTS = Prompts.of(torch.zeros(0, 0, dtype=torch.int64), None)


@dataclass(eq=False)
class Decision:
    """What to do with a call.

    Attributes:
        reason: why.
        length: tokens of the prefix to share; 0: leave the call to stock.
        prompts: the rows, on the host.
        kept: a kept prefix to start from.
        reused: how many of its tokens serve.
        keep: whether the prefix may be kept for later calls.
    """

    reason: str
    length: int = 0
    prompts: Prompts = NO_PROMPTS
    kept: KeptPrefix | None = None
    reused: int = 0
    keep: bool = False

    def report(self, backend: str) -> RelayReport:
        """The decision as a report, before any byte is measured."""
        if not self.length:
            return RelayReport(False, self.reason)
        rows = len(self.prompts.ids)
        own = self.prompts.tokens() - rows * self.length
        computed = own + self.length - self.reused
        return RelayReport(
            relayed=True,
            reason=self.reason,
            rows=rows,
            prefix_length=self.length,
            prefix_tokens_reused=self.reused,
            prompt_tokens_computed=computed,
            prompt_tokens_saved=self.prompts.tokens() - computed,
            levels=1,
            backend=backend,
        )


def decide(
    relay: Relay, input_ids: Tensor, generation_config: GenerationConfig, inputs: dict, first: bool = True
) -> Decision:
    """Decide a call.

    Args:
        relay: the model's handle.
        input_ids: `[B, L]`, every row that the model will run.
        generation_config: as generate() resolved it.
        inputs: the forward's keyword inputs, as generate() has them.
        first: generate()'s `is_first_iteration`.

    Raises:
        TokenIdError: a token id has no embedding.
    """
    model, config = relay.model, relay.config
    if config.policy == "off":
        return Decision("policy 'off'")
    call = open_call()
    refusal = (
        relay.model_refusal
        or eligibility.model_refusal(model, call.configs)
        or eligibility.call_refusal(input_ids, generation_config, inputs, first, _stock_cache(relay, inputs))
        or eligibility.training_refusal(call.modules, call.configs)
        or eligibility.hook_refusal(call.modules, relay.hook_ids)
        or eligibility.rope_refusal(call.configs, input_ids.shape[1])
    )
    if refusal:
        return Decision(refusal)
    mask = inputs.get("attention_mask")
    prompts = Prompts.of(input_ids, mask)
    eligibility.check_vocabulary(model, prompts.ids, "input_ids")
    keep = keeping_refusal(model, call.modules) is None and relay.store.budget > 0
    found = _find(relay, prompts, keep)
    if found.length < config.min_prefix_length:
        return found
    padded = bool(prompts.start.any())
    refusal = eligibility.position_refusal(inputs, mask, padded)
    if refusal is None and config.policy == "auto":
        rows = len(prompts.ids)
        new = max((generation_config.max_length or 0) - input_ids.shape[1], 1)
        shape = gate.Shape(rows, found.length, found.reused, new, returning=rows == 1 and found.reused < found.length)
        refusal = gate.refusal(shape, gate.ModelCost.of(call.modules, relay.text_config), model.device.type)
    return Decision(refusal, prompts=prompts) if refusal else found


def _stock_cache(relay: Relay, inputs: dict) -> Cache | None:
    """The cache that stock would use; a plain one where only the model's own defaults ask for a static one.

    Such a default is its author's advice for speed, not the caller's wish. On other devices generate() has chosen to
    compile the forward for it by now.
    """
    cache = inputs.get("past_key_values")
    by_default = isinstance(cache, StaticCache) and not open_call().names_cache
    if by_default and not hasattr(cache, "_is_user_defined") and relay.model.device.type == "cpu":
        return DynamicCache(config=relay.text_config)
    return cache


def _find(relay: Relay, prompts: Prompts, keep: bool) -> Decision:
    """The prefix to share: what the rows share; for a single row, what is kept or returns from an earlier call."""
    least = relay.config.min_prefix_length
    shared = prompts.shared_length()
    ids = prompts.first_row[:shared]
    kept, reused = relay.lookup(ids) if keep else (None, 0)
    single = len(prompts.ids) == 1
    length = shared
    if single:
        length = max(reused, relay.recent.returning(ids) if keep else 0)
    # A forward for a few more tokens costs more than it saves; the rows carry them as their own.
    if reused and length - reused < least:
        length = reused
    if length < least:
        what = "nothing kept or recent starts this row" if single else f"the rows share {length} tokens"
        return Decision(f"{what}, fewer than min_prefix_length={least}" if length else what, prompts=prompts)
    if reused == length:
        reason = "a kept prefix"
    elif single:
        reason = "a start that returned, kept from now on"
    else:
        reason = "the rows start alike" if not reused else "a kept prefix, extended by what the rows share"
    return Decision(reason, length, prompts, kept if reused else None, reused, keep)


def autocast_context(device_type: str) -> Hashable:
    """What a prefix's KV depends on beside the model: whether autocast is on, and to what."""
    enabled = torch.is_autocast_enabled(device_type)
    return (device_type, torch.get_autocast_dtype(device_type) if enabled else None)
