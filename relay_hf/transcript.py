"""A call of a single row, kept whole: so the next turn of a conversation prefills only what is new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cache_utils import RelayCache
from .call import open_call
from .eligibility import rope_refusal
from .keeping import Prefilled, context_of, embedded

if TYPE_CHECKING:
    from .prefix import Witness
    from .relay import Relay

# A row is kept before it is known whether its start returns: at most so much of the store is given to one.
_SHARE_OF_STORE = 0.5


class Transcript:
    """What goes through the model in a call of one row, from the prompt's prefill on.

    Attributes:
        expanded: K and V of the prompt as attention saw them, by layer, where the cache stores something else (MLA).

    Args:
        relay: the model's handle.
        cache: the call's cache.
        prompt: `[P]`, the row's tokens, on the host, up to its first hole.
        shared: how many of them are in segments.
        goes_on: whether what is generated may be kept too: not behind a hole.
    """

    def __init__(self, relay: Relay, cache: RelayCache, prompt: Tensor, shared: int, goes_on: bool) -> None:
        self._relay = relay
        self._cache = cache
        self._prompt = prompt
        self._shared = shared
        self._goes_on = goes_on
        self._before: Witness = relay.keeper.witness(open_call().modules)
        self._embedded = embedded(relay.model.get_input_embeddings(), prompt[shared:])
        self._fed: list[Tensor] = []
        self.expanded: dict[int, tuple[Tensor, Tensor]] = {}

    def feed(self, cache: RelayCache, input_ids: Tensor | None) -> None:
        """Note the tokens of a forward with `cache`, behind the prompt's prefill."""
        if cache is self._cache and input_ids is not None:
            self._fed.append(input_ids)

    def keep(self) -> None:
        """Keep the row, up to the last token that went through the model."""
        relay, cache, prompt = self._relay, self._cache, self._prompt
        fed = torch.cat([prompt[:0], *(ids.flatten().to(prompt) for ids in self._fed)])
        total = len(prompt) + len(fed)
        own = next(iter(cache.kv_layers.values())).own_length if cache.kv_layers else total - self._shared
        whole = self._goes_on and self._shared + own == total and not rope_refusal(open_call().configs, total)
        # Of the answer, what attention sees is known only where it is what the cache stores.
        answer = fed if whole and not self.expanded else prompt[:0]
        if cache.state_layers and len(prompt) + len(answer) < total:
            return  # states belong to the last token
        ids = torch.cat([prompt, answer])
        run = cache.freeze(self.expanded, self._shared, own).first(len(ids) - self._shared)
        rows = torch.cat([self._embedded, embedded(relay.model.get_input_embeddings(), answer)])
        most = int(relay.keeper.store.budget * _SHARE_OF_STORE)
        relay.keeper.keep(self._before, open_call().modules, [Prefilled(ids, run, rows)], context_of(relay.model), most)
