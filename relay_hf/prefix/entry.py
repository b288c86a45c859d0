"""A prefix on its way to the store: just prefilled, or read from a file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..cache_utils import PrefixKV


@dataclass(frozen=True, eq=False)
class PrefixEntry:
    """A prefix that may be kept, or that a file holds.

    Attributes:
        ids: `[n]` int64, on the host: all its tokens, or those behind the ones of `parent`.
        kv: what the model keeps of the last of these.
        samples: of the tokens of `kv`, the samples of their embedding from before their prefill; None in a file, which
            holds the digest of the whole embedding.
        parent: the place of the prefix that it extends, among those that come with it; None where it starts at 0.
        pinned: it is to stay.
    """

    ids: Tensor
    kv: PrefixKV
    samples: Tensor | None = None
    parent: int | None = None
    pinned: bool = False
