"""A kept prefix, and how much of a prompt kept ones hold."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache_utils import PrefixKV

ITEM = 8  # bytes of a token id


class RadixNode:
    """A place in the tree from which prefixes go on: where those of one context begin, or the end of one.

    Attributes:
        context: what their KV depends on beside the tokens (device, dtype, autocast, arithmetic), and their stream.
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
        parent: the prefix that it extends, or the place where all of its context begin.
        pinned: whether it stays, whatever else is to be kept. Set it to False to let it go.
        nbytes: bytes of what it holds of its tokens behind those of its parent: keys and values, or states, and what is
            beside them.
        run: the keys and values, or states, by layer.
        data: its token ids, int64.
        embedded: `[n, e]`, some elements of the embedding of each of these when it was prefilled.
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
        """Those behind its parent's: `[n]` int64, on the host."""
        return torch.frombuffer(bytearray(self.data), dtype=torch.int64)

    def resumable_at(self, length: int) -> bool:
        """Whether a model can go on from `length` tokens: recurrent layers only where their states are known."""
        return not self.recurrent or (length == len(self) and self.run.recurrent)

    def __repr__(self) -> str:
        behind = f", the last {self.run.length}" if self.run.start else ""
        return f"KeptPrefix({len(self)} tokens{behind}: {self.nbytes / 2**20:.1f} MiB{', pinned' * self.pinned})"


def overhead_bytes(embedded: Tensor) -> int:
    """Bytes that are kept of tokens beside their run: their ids, and these elements of their embedding."""
    return len(embedded) * ITEM + embedded.nbytes


@dataclass(frozen=True, eq=False)
class Planned:
    """A prefix that is to be kept.

    Attributes:
        ids: `[n]` int64, on the host: its tokens behind those of the one that it extends.
        length: how many of the last of these are given.
        nbytes: bytes of what is given, and of what is beside it.
        parent: the place of the one that it extends among those that are planned; None: `ids` are all its tokens.
    """

    ids: Tensor
    length: int
    nbytes: int
    parent: int | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """How much of the start of some tokens is kept.

    Attributes:
        seen: tokens that have been prefilled before.
        length: those from whose end a model can go on: fewer where the states of recurrent layers are not known.
        path: the prefixes that hold these; of the last one maybe not all.
        held: what each of them held when they were found: a prefix may be divided, or leave, at any time.
    """

    seen: int = 0
    length: int = 0
    path: tuple[KeptPrefix, ...] = ()
    held: tuple[PrefixKV, ...] = ()

    def within(self, end: int) -> int:
        """From how many of the first `end` tokens a model can go on."""
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
