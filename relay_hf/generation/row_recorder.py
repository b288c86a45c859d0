"""Keeps a call of a single row whole, so that the next turn of a conversation prefills only its new tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cache_utils import RelayCache
from ..model.fingerprint import ModelFingerprint, embedding_samples, keeping_refusal
from ..model.view import ModelView
from ..prefix import PrefixEntry
from .eligibility import rope_refusal
from .eligible_code import code_refusal
from .facts import CallFacts

# The share of the store that one row may take, because nobody knows whether a later call will start with it.
_SHARE_OF_STORE = 0.5


class RowRecorder:
    """Records the tokens that go through the model in a call of one row, from the prompt's prefill on.

    Attributes:
        expanded: K and V of the prompt as attention saw them, by layer, where the cache stores something else (MLA).

    Args:
        facts: the facts of the call.
        cache: the call's cache.
        prompt: `[P]`, the row's tokens, on the host, up to its first hole.
        shared: how many of these tokens are in segments.
        goes_on: whether the answer may be kept too. It may not behind a hole, nor if code of the caller runs between
            the steps, because that might change the model and change it back.
        before: the fingerprint of the model when the store was searched for the row; None if nothing was found.
    """

    def __init__(
        self,
        facts: CallFacts,
        cache: RelayCache,
        prompt: Tensor,
        shared: int,
        goes_on: bool,
        before: ModelFingerprint | None,
    ) -> None:
        self._facts = facts
        self._cache = cache
        self._prompt = prompt.clone()  # usually it is a view of the caller's tensor
        self._shared = shared
        self._goes_on = goes_on
        self._store_key = facts.view.store_key
        self._before = before or facts.store.fingerprint(facts.view.modules)
        self._samples = embedding_samples(facts.view.embedding, prompt[shared:])
        self._fed: list[Tensor] = []
        self.expanded: dict[int, tuple[Tensor, Tensor]] = {}

    def feed(self, cache: RelayCache, input_ids: Tensor | None) -> None:
        """Note the tokens of a forward with `cache`, behind the prompt's prefill."""
        if cache is self._cache and input_ids is not None:
            self._fed.append(input_ids.clone())

    @property
    def ends_with_prompt(self) -> bool:
        """Whether only the prompt is to be kept; known once the prompt has been prefilled."""
        # An answer's KV is known only if attention sees what the cache stores.
        return not self._goes_on or bool(self.expanded)

    def keep(self) -> None:
        """Keep the row, up to the last token that went through the model."""
        facts, cache, prompt = self._facts, self._cache, self._prompt
        view = ModelView.of(facts.view.model)  # as it is now
        if keeping_refusal(view.model, view.modules) or code_refusal(view, facts.config):
            return
        cache.join_if_changed()
        if cache.is_joined:  # what it holds is no longer what the model has computed
            return
        if view.store_key != self._store_key:
            # Another thread, or a streamer's tokenizer, has changed PyTorch's settings, so the KV was computed partly
            # under one, partly under another.
            return
        answer = torch.cat([prompt[:0], *(ids.flatten().to(prompt) for ids in self._fed)])
        total = len(prompt) + len(answer)
        own = total - self._shared
        held = {layer.own_length for layer in cache.kv_layers.values()}
        columns = min(held, default=own)  # a row with a hole has columns behind it too
        if len(held) > 1 or (columns != own if self._goes_on else columns < own):
            return  # somebody has cropped the cache, or filled it in another way
        if rope_refusal(facts.view.configs, total):
            if cache.state_layers:
                return  # states belong to the last token
            answer = answer[:0]
        ids = torch.cat([prompt, answer])
        run = cache.freeze(self.expanded, self._shared, columns).first(len(ids) - self._shared)
        samples = torch.cat([self._samples, embedding_samples(view.embedding, answer)])
        most = int(facts.store.budget * _SHARE_OF_STORE)
        facts.source.keep(self._before, view.modules, [PrefixEntry(ids, run, samples)], self._store_key, most)
