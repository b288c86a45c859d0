"""A call of a single row, kept whole: so the next turn of a conversation prefills only what is new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cache_utils import RelayCache
from ..model.device import store_key
from ..model.fingerprint.embedding import embedding_samples
from ..model.fingerprint.keeping import keeping_refusal
from ..model.fingerprint.module_state import all_modules
from ..prefix.store import Prefilled
from .call import open_call
from .eligibility import hook_refusal, rope_refusal

if TYPE_CHECKING:
    from ..model.fingerprint.fingerprint import ModelFingerprint
    from ..relay import Relay

# A row is kept before it is known whether its start returns: at most so much of the store is given to one.
_SHARE_OF_STORE = 0.5


class RowRecorder:
    """What goes through the model in a call of one row, from the prompt's prefill on.

    Attributes:
        expanded: K and V of the prompt as attention saw them, by layer, where the cache stores something else (MLA).

    Args:
        relay: the model's handle.
        cache: the call's cache.
        prompt: `[P]`, the row's tokens, on the host, up to its first hole.
        shared: how many of them are in segments.
        goes_on: whether what is generated may be kept too: not behind a hole, nor where code of the caller's runs
            between the steps, which may change the model and change it back.
        before: the model when it was looked up what is kept of the row; None: nothing was.
    """

    def __init__(
        self,
        relay: Relay,
        cache: RelayCache,
        prompt: Tensor,
        shared: int,
        goes_on: bool,
        before: ModelFingerprint | None,
    ) -> None:
        self._relay = relay
        self._cache = cache
        self._prompt = prompt.clone()  # a view of the caller's own tensor, as a rule
        self._shared = shared
        self._goes_on = goes_on
        self._reach = store_key(relay.model)
        self._before = before or relay.keeper.witness(open_call().modules)
        self._embedded = embedding_samples(relay.model.get_input_embeddings(), prompt[shared:])
        self._fed: list[Tensor] = []
        self.expanded: dict[int, tuple[Tensor, Tensor]] = {}

    def feed(self, cache: RelayCache, input_ids: Tensor | None) -> None:
        """Note the tokens of a forward with `cache`, behind the prompt's prefill."""
        if cache is self._cache and input_ids is not None:
            self._fed.append(input_ids.clone())

    @property
    def ends_with_prompt(self) -> bool:
        """Whether nothing behind the prompt is to be kept, known once the prompt has been prefilled."""
        # Of an answer, what attention sees is known only where it is what the cache stores.
        return not self._goes_on or bool(self.expanded)

    def keep(self) -> None:
        """Keep the row, up to the last token that went through the model."""
        relay, cache, prompt = self._relay, self._cache, self._prompt
        modules = all_modules(relay.model)  # as they are now
        if keeping_refusal(relay.model, modules) or hook_refusal(modules, relay):
            return
        if store_key(relay.model) != self._reach:
            return  # of each setting there is a part: a tokenizer behind a streamer, or another thread, has changed one
        answer = torch.cat([prompt[:0], *(ids.flatten().to(prompt) for ids in self._fed)])
        total = len(prompt) + len(answer)
        own = total - self._shared
        held = {layer.own_length for layer in cache.kv_layers.values()}
        columns = min(held, default=own)  # behind a hole there are more
        if len(held) > 1 or (columns != own if self._goes_on else columns < own):
            return  # somebody has cropped the cache, or fed it by another way
        if rope_refusal(open_call().configs, total):
            if cache.state_layers:
                return  # states belong to the last token
            answer = answer[:0]
        ids = torch.cat([prompt, answer])
        run = cache.freeze(self.expanded, self._shared, columns).first(len(ids) - self._shared)
        rows = torch.cat([self._embedded, embedding_samples(relay.model.get_input_embeddings(), answer)])
        most = int(relay.keeper.budget * _SHARE_OF_STORE)
        relay.keeper.keep(self._before, modules, [Prefilled(ids, run, rows)], self._reach, most)
