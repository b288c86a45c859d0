"""Estimates what a call would share and save, from prompts and a configuration, without weights and without a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

import relay_hf
from relay_hf.generation.cost_model import ModelCost
from relay_hf.generation.decision import Decision
from relay_hf.generation.dry_run import dry_run
from relay_hf.generation.facts import CallArguments
from relay_hf.model.upstream.caches import attending
from relay_hf.prefix import Prompts, walk


@dataclass(frozen=True)
class Estimate:
    """A call that is not run.

    Attributes:
        shared: the decision under policy "always": all runs that can be shared exactly.
        verdict: the decision under policy "auto" on this machine.
        new: tokens to be generated for a row.
        token_bytes: KV of a token in all layers (bytes); None where the configuration does not say it in a usual way.
    """

    shared: Decision
    verdict: Decision
    new: int
    token_bytes: int | None

    @property
    def rows(self) -> int:
        """Rows of the call."""
        return len(self.shared.prompts.ids)

    @property
    def stock_tokens(self) -> int:
        """Prompt tokens that stock computes, without padding."""
        return self.shared.prompts.tokens

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that are computed if all runs are shared that can be."""
        return self.stock_tokens - self.shared.report().prompt_tokens_saved

    @property
    def kv_bytes(self) -> int | None:
        """Bytes of the cache at the end, without slack: shared tokens once, and the own columns of each row."""
        if self.token_bytes is None or not self.shared.relays:
            return self.kv_bytes_stock
        prompts, runs = self.shared.prompts, [run for _, run in walk(self.shared.runs)]
        lengths = (prompts.end - prompts.start) - torch.tensor(self.shared.shared_lengths, device="cpu")
        own = self.rows * (int(lengths.max()) + self.new)
        return self.token_bytes * (sum(len(run.ids) for run in runs) + own)

    @property
    def kv_bytes_stock(self) -> int | None:
        """Bytes of stock's cache: every column of every row, padding included."""
        if self.token_bytes is None:
            return None
        return self.token_bytes * self.rows * (self.shared.prompts.ids.shape[1] + self.new)


def estimate_call(model: PreTrainedModel, ids: Tensor, mask: Tensor, new: int, device: torch.device) -> Estimate:
    """What `model.generate(ids, attention_mask=mask, max_new_tokens=new)` would do on `device`.

    Args:
        model: the model, with or without weights; it is patched for the estimate.
        ids, mask: `[B, L]`, the rows as the model will run them.
        new: tokens to be generated for a row.
        device: the device that the call would run on.

    Raises:
        TokenIdError: a token id has no embedding.
    """
    shared, token_bytes = _decide(model, ids, mask, new, device, "always")
    verdict, _ = _decide(model, ids, mask, new, device, "auto")
    return Estimate(shared, verdict, new, token_bytes)


def _decide(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, new: int, device: torch.device, policy: str
) -> tuple[Decision, int | None]:
    """The decision under a policy, and the KV of a token (bytes)."""
    options = {"attention_mask": mask, "max_new_tokens": new}
    # Nothing is kept of a model without weights, and nothing looked up.
    with relay_hf.patched(model, policy=policy, max_store_bytes=0):
        hooks = model.relay._hooks
        stock = hooks.stock("generate")
        with hooks.open_dry_call(CallArguments.of(stock, (ids,), options)) as call:
            decision = dry_run(call, stock, (ids,), options, device).decision
            if not len(decision.prompts.ids):  # it was refused before they were read
                decision.prompts = Prompts.of(ids, mask)
            view = call.facts.view
            try:
                cost = ModelCost.of(view.modules, view.text_config, attending(view.default_cache()))
            except (AttributeError, RuntimeError, TypeError, ValueError):
                return decision, None
            return decision, cost.kv_bytes * cost.layers
