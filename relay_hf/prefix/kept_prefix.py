"""A kept prefix as a node of the radix tree, and the match of a prompt with kept prefixes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache_utils import PrefixKV
from ..report import readable_bytes

ITEM = 8  # bytes of a token id


class RadixNode:
    """A node of the tree, from which prefixes go on: the root of one context, or the end of a prefix.

    Attributes:
        context: device, dtype, autocast, arithmetic and CUDA stream of the prefixes.
        children: the prefixes that go on from here, by the bytes of their first token.
    """

    def __init__(self, context: Hashable) -> None:
        self.context = context
        self.children: dict[bytes, KeptPrefix] = {}

    def path(self) -> tuple[KeptPrefix, ...]:
        """The prefixes up to here, the shortest first."""
        return tuple(reversed([*self.upward()]))

    def upward(self) -> Iterator[KeptPrefix]:
        """The prefixes up to here, the longest first."""
        node = self
        while isinstance(node, KeptPrefix):
            yield node
            node = node.parent


class KeptPrefix(RadixNode):
    """A prefix that has been prefilled: a node of the store's tree. It holds the tokens behind those of its parent.

    Attributes:
        parent: the prefix that it extends, or the root of its context.
        pinned: whether it stays, even if its memory is needed for other prefixes. Set it to False to let it go.
        nbytes: bytes of its tokens behind those of its parent: keys and values, or states, ids and embedding samples.
        run: the keys and values, or states, by layer.
        data: the token ids of the run, int64.
        embedded: `[n, e]`, some elements of the embedding of each of these tokens, from before their prefill.
        used: when it was last used, on the store's clock.
        recurrent: the model has recurrent layers.
        siblings: the nodes whose tensors are views of the same memory, this one included.
    """

    def __init__(self, parent: RadixNode, data: bytes, embedded: Tensor) -> None:
        super().__init__(parent.context)
        self.parent = parent
        self.pinned = False
        self.nbytes = 0
        self.run = PrefixKV(0, 0, ())
        self.data = data
        self.embedded = embedded
        self.used = 0
        self.recurrent = False
        self.siblings = {self}

    def __len__(self) -> int:
        return self.run.end

    @property
    def ids(self) -> Tensor:
        """All tokens of the prefix: `[P]` int64, on the host."""
        return torch.frombuffer(bytearray(b"".join(node.data for node in self.path())), dtype=torch.int64)

    @property
    def tokens(self) -> Tensor:
        """The tokens behind its parent's: `[n]` int64, on the host."""
        return torch.frombuffer(bytearray(self.data), dtype=torch.int64)

    def resumable_at(self, length: int) -> bool:
        """Whether a model can go on from `length` tokens. Recurrent layers can only where their states are known."""
        return not self.recurrent or (length == len(self) and self.run.recurrent)

    def __repr__(self) -> str:
        behind = f", the last {self.run.length}" if self.run.start else ""
        return f"KeptPrefix({len(self)} tokens{behind}: {readable_bytes(self.nbytes)}{', pinned' * self.pinned})"


def overhead_bytes(embedded: Tensor) -> int:
    """Bytes that are kept of tokens beside their run: their ids, and samples of their embedding."""
    return len(embedded) * ITEM + embedded.nbytes


@dataclass(frozen=True, eq=False)
class Planned:
    """A prefix that will be kept, if there is room.

    Attributes:
        ids: `[n]` int64, on the host: its tokens behind those of the prefix that it extends.
        length: how many of these tokens, counted from the last, come with KV.
        nbytes: bytes of this KV, of the ids and of the embedding samples.
        parent: the index of the planned prefix that it extends; None: `ids` are all its tokens.
    """

    ids: Tensor
    length: int
    nbytes: int
    parent: int | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """How much of the start of a prompt is kept.

    Attributes:
        seen: number of tokens that were prefilled before.
        length: number of tokens after which a model can go on: fewer if the states of recurrent layers are not known.
        path: the prefixes that hold these tokens; the last one may hold more.
        held: the run of each of these prefixes at the time of the match, because a prefix may be divided, or leave, at
            any time.
    """

    seen: int = 0
    length: int = 0
    path: tuple[KeptPrefix, ...] = ()
    held: tuple[PrefixKV, ...] = ()

    def within(self, end: int) -> int:
        """After how many of the first `end` tokens a model can go on."""
        if not any(node.recurrent for node in self.path):
            return min(self.length, end)
        return max((run.end for run in self.held if run.recurrent and run.end <= end), default=0)

    def runs(self, start: int, end: int) -> list[PrefixKV]:
        """The tokens from position `start` to `end`, `length` at most, as views."""
        found = []
        for run in self.held:
            if start < run.end and run.start < end:
                found.append(run.first(min(end, run.end) - run.start).after(max(start - run.start, 0)))
        return found
