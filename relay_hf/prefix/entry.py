"""A prefix on its way to the store: just prefilled, or read from a file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..cache_utils import PrefixKV


@dataclass(frozen=True, eq=False)
class PrefixEntry:
    """A prefix that may be kept, or that a file holds.

    Attributes:
        ids: `[n]` int64, on the host: all its tokens, or those behind the tokens of `parent`.
        kv: the KV and states of the last of these tokens.
        samples: samples of the embedding of the tokens of `kv`, from before their prefill; None in a file, which has
            the digest of the whole embedding.
        parent: the index of the prefix that it extends, among those that come with it; None if it starts at 0.
        pinned: whether it is pinned.
    """

    ids: Tensor
    kv: PrefixKV
    samples: Tensor | None = None
    parent: int | None = None
    pinned: bool = False
