"""Prefixes kept between calls: a radix tree of token ids, under a byte budget."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from functools import wraps
from heapq import heapify, heappop, heappush
from itertools import takewhile
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ..cache_utils import LayerState, PrefixKV
from .entry import PrefixEntry
from .kept_prefix import ITEM, KeptPrefix, Match, Planned, RadixNode, overhead_bytes

# A run is joined with the one run that follows it, unless it is more than so many times as long. So a prefix that grows
# bit by bit has few runs (each run costs every decode step one more part of attention). For each new token at most so
# many old ones are copied, a few times.
_JOINED_UP_TO = 4


_Change = TypeVar("_Change", bound=Callable[..., Any])


def _whole(change: _Change) -> _Change:
    """Wrap a method that changes the tree: an interrupt (not an Exception) within it drops the whole tree.

    An interrupt may come between any two steps of a change, and a tree that is half changed must not serve. An
    Exception leaves the tree as it is, because only the first part of a change, before it touches the tree, can raise.
    """

    @wraps(change)
    def changed(store: RadixTree, *args: Any, **kwargs: Any) -> Any:
        try:
            return change(store, *args, **kwargs)
        except Exception:
            raise
        except BaseException:
            store.clear()
            raise

    return cast(_Change, changed)


class RadixTree:
    """Kept prefixes. The least recently used leaf leaves first. Pinned prefixes stay, and so do those they extend.

    Args:
        budget: most bytes to hold.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._roots: dict[Hashable, RadixNode] = {}
        self._nodes: set[KeptPrefix] = set()
        self._clock = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[KeptPrefix]:
        """All prefixes, the least recently used first, and of those used together the longest."""
        return iter(sorted(self._nodes, key=lambda node: (node.used, -len(node))))

    def clear(self) -> None:
        """Drop everything."""
        roots, nodes = self._roots, self._nodes
        self.nbytes, self._roots, self._nodes = 0, {}, set()
        for node in (*roots.values(), *nodes):  # so that memory is free at once, without waiting for the garbage
            node.children.clear()  # collector
        for prefix in nodes:
            prefix.siblings = set()

    @_whole
    def release(self) -> None:
        """Drop prefixes that are not pinned. One that shares memory with a pinned one stays, so nothing is copied."""
        staying = self._staying([])
        while shared := {other for node in staying for other in node.siblings} - staying:
            staying |= self._staying(shared)
        for node in self._nodes - staying:
            if node.parent.children.get(node.data[:ITEM]) is node:
                del node.parent.children[node.data[:ITEM]]
            node.children.clear()
            node.siblings = set()
            self._nodes.remove(node)
            self.nbytes -= node.nbytes

    def match(self, ids: Tensor, context: Hashable) -> Match:
        """How much of the start of `ids` (`[n]` int64, on the host) is kept."""
        path, seen = self._walk(ids, self._root(context))
        length = seen
        while path and not path[-1].resumable_at(length):
            length = path.pop().run.start
        return Match(seen, length, tuple(path), tuple(node.run for node in path))

    @_whole
    def ending(self, ids: Tensor, context: Hashable) -> KeptPrefix | None:
        """The prefix of just these tokens (`[P]`), or None if not all of them are kept."""
        root = self._root(context)
        path, seen = self._walk(ids, root)
        if not path or seen < len(ids):
            return None
        self._end(path, seen, root)
        return self._walk(ids, root)[0][-1]

    def touch(self, match: Match) -> None:
        """Note a use."""
        self._clock += 1
        self._note(match.path)

    def under(self, context: Hashable) -> Iterator[KeptPrefix]:
        """The prefixes of a context, each after the one that it extends."""
        stack = list(self._root(context).children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    @_whole
    def add(
        self,
        entry: PrefixEntry,
        context: Hashable,
        most: int | None = None,
        join: bool = True,
        behind: KeptPrefix | None = None,
    ) -> KeptPrefix | None:
        """Keep a prefix, and evict others until all fit into the budget.

        Args:
            entry: the whole prefix, or its tokens behind those of `behind`. The tokens before its KV must be kept
                already.
            context: the store key that its KV belongs to.
            most: None if the tensors of the KV are its own. Otherwise they are copied, up to so many bytes; only the
                start of a larger prefix is kept.
            join: join a leaf with the node before it, if no other node follows that one and it is not much longer.
            behind: the kept prefix that it extends, if the caller has it; then its tokens are not searched again.

        Returns:
            The prefix; None if it doesn't fit beside prefixes that stay, or if the prefix before it has left.
        """
        if behind is not None and behind not in self._nodes:
            return None
        ids, run = entry.ids, entry.kv
        embedded = torch.zeros(run.length, 0, device="cpu") if entry.samples is None else entry.samples
        start = self._roots.setdefault(context, RadixNode(context)) if behind is None else behind
        before = 0 if behind is None else len(behind)
        path, seen = self._walk(ids, start)
        known = before + seen - run.start
        if known < 0:
            return None
        end = self._end(path, before + seen, start)
        if known < run.length:
            new, looks = run.after(known), embedded[known:]
            length = self._fitting(new, overhead_bytes(looks), end, most)
            if length < new.length and (most is None or not length or run.recurrent):
                return None
            new = new.first(length)
            new = run if new is run and most is None else new.clone()
            looks = embedded if length == len(embedded) else looks[:length].clone()
            node = self._append(end, ids[seen : seen + length], new, looks)
        elif isinstance(end, KeptPrefix):
            node = end
            if run.recurrent and not node.resumable_at(len(node)):
                layers = zip(node.run.layers, run.layers, strict=True)
                whole = replace(node.run, layers=tuple(LayerState(old.kv, new.state) for old, new in layers))
                if whole.nbytes - node.run.nbytes > self._room(node):
                    return None
                self._put(node, whole)
        else:
            return None
        node.pinned = node.pinned or entry.pinned
        self._clock += 1
        self._note(takewhile(lambda each: each is not behind, node.upward()))
        self._evict()
        if join:
            self._join(node)
        return node

    @_whole
    def lacks(self, prefixes: Iterable[Planned], context: Hashable, make_room: bool = False) -> int:
        """Bytes that the budget lacks to keep all of these at once, or 0. Those that are kept already count as used.

        Args:
            prefixes: each after the one that it extends.
            context: the store key that their KV belongs to.
            make_room: if the budget suffices, evict at once the prefixes that have to leave.
        """
        new, staying = self._needed(prefixes, context)
        if make_room and new + staying <= self.budget:
            self._evict(new)
        return max(new + staying - self.budget, 0)

    def _needed(self, prefixes: Iterable[Planned], context: Hashable) -> tuple[int, int]:
        """Bytes of those prefixes that are not kept yet, and of all kept ones that can't be evicted for them."""
        staying, new = self._staying([]), 0
        # The end of each one's tokens in the tree: so many tokens into a node; or None, outside of the tree.
        ends: list[tuple[RadixNode, int] | None] = []
        self._clock += 1
        for each in prefixes:
            start = (self._root(context), 0) if each.parent is None else ends[each.parent]
            path, seen = ([], 0) if start is None else self._walk(each.ids, *start)
            staying.update(path)
            self._note(path)
            new += each.nbytes * min(len(each.ids) - seen, each.length) // each.length
            ends.append(None if start is None or seen < len(each.ids) else _moved(*start, path, seen))
        return new, sum(node.nbytes for node in staying)

    def _note(self, used: Iterable[KeptPrefix]) -> None:
        for node in used:
            node.used = self._clock

    def _root(self, context: Hashable) -> RadixNode:
        return self._roots.get(context, RadixNode(context))

    def _walk(self, ids: Tensor, start: RadixNode, inside: int | None = None) -> tuple[list[KeptPrefix], int]:
        """The nodes along `ids`, and how many tokens of `ids` they hold. The last node may hold more.

        The first of `ids` comes after `start`, or after so many tokens `inside` of it.
        """
        data, at, path = ids.numpy().tobytes(), 0, list[KeptPrefix]()
        if inside is not None and isinstance(start, KeptPrefix):
            rest = start.data[inside * ITEM : inside * ITEM + len(data)]
            if not data.startswith(rest):
                return path, _common(data, rest)
            at = len(rest)
        children = start.children
        while (node := children.get(data[at : at + ITEM])) is not None:
            path.append(node)
            children = node.children
            if not data.startswith(node.data, at):
                return path, at // ITEM + _common(data[at:], node.data)
            at += len(node.data)
        return path, at // ITEM

    def _end(self, path: list[KeptPrefix], seen: int, start: RadixNode) -> RadixNode:
        """The node that ends after the first `seen` tokens of a prefix: the last one of a path, divided if necessary.

        `start`: the node before the path.
        """
        if not path:
            return start
        tail = path[-1]
        length = seen - tail.run.start
        if length == tail.run.length:
            return tail
        first, rest, embedded = tail.run.first(length), tail.run.after(length), tail.embedded[length:].clone()
        head = KeptPrefix(tail.parent, tail.data[: length * ITEM], tail.embedded[:length].clone())
        head.recurrent, head.used = tail.recurrent, tail.used
        head.children[tail.data[length * ITEM : (length + 1) * ITEM]] = tail
        head.siblings = tail.siblings  # both are views of the same tensors now
        head.siblings.add(head)
        self._nodes.add(head)
        tail.parent.children[head.data[:ITEM]] = head
        tail.parent, tail.data, tail.embedded = head, tail.data[length * ITEM :], embedded
        self._put(head, first)
        self._put(tail, rest)
        return head

    def _append(self, parent: RadixNode, ids: Tensor, run: PrefixKV, embedded: Tensor) -> KeptPrefix:
        node = KeptPrefix(parent, ids.numpy().tobytes(), embedded)
        node.recurrent = run.recurrent
        parent.children[node.data[:ITEM]] = node
        self._nodes.add(node)
        self._put(node, run)
        return node

    def _put(self, node: KeptPrefix, run: PrefixKV) -> None:
        self.nbytes -= node.nbytes
        node.run, node.nbytes = run, run.nbytes + overhead_bytes(node.embedded)
        self.nbytes += node.nbytes

    def _join(self, node: KeptPrefix) -> None:
        """Join a leaf with the node before it, if no other node follows that one and it is not much longer."""
        while not node.recurrent and not node.children:
            before = node.parent
            if not isinstance(before, KeptPrefix) or before.pinned or len(before.children) > 1:
                return
            if before.run.length > _JOINED_UP_TO * node.run.length:
                return
            run, embedded = PrefixKV.joined([before.run, node.run]), torch.cat([before.embedded, node.embedded])
            copies = self._copies(before, node)
            node.data, node.embedded, node.siblings = before.data + node.data, embedded, {node}
            self._put(node, run)
            node.parent = before.parent
            node.parent.children[node.data[:ITEM]] = node
            self._forget(before, copies)

    def _fitting(self, run: PrefixKV, more: int, behind: RadixNode, most: int | None) -> int:
        """How many tokens of a run, with `more` bytes beside it, fit into the budget beside prefixes that stay."""
        nbytes = run.nbytes + more
        most = nbytes if most is None else most
        if nbytes <= min(self.budget - self.nbytes, most):
            return run.length  # nothing has to leave
        room = min(self._room(behind), most)
        return run.length if nbytes <= room else max(room, 0) * run.length // nbytes

    def _room(self, behind: RadixNode) -> int:
        """Bytes that are free if all prefixes leave but the pinned ones and those on the path to `behind`."""
        return self.budget - sum(node.nbytes for node in self._staying([behind]))

    def _staying(self, ends: Iterable[RadixNode]) -> set[KeptPrefix]:
        """The prefixes that can't be evicted: those on the paths to `ends` and to pinned prefixes."""
        staying: set[KeptPrefix] = set()
        for node in (*ends, *(node for node in self._nodes if node.pinned)):
            while isinstance(node, KeptPrefix) and node not in staying:
                staying.add(node)
                node = node.parent
        return staying

    def _evict(self, room: int = 0) -> None:
        """Drop leaves until `room` bytes are free."""
        if self.nbytes + room <= self.budget:
            return
        leaves = [(node.used, id(node), node) for node in self._nodes if not node.children and not node.pinned]
        heapify(leaves)
        while self.nbytes + room > self.budget:
            leaf = heappop(leaves)[-1]
            before, copies = leaf.parent, self._copies(leaf)
            del before.children[leaf.data[:ITEM]]
            self._forget(leaf, copies)
            if isinstance(before, KeptPrefix) and not before.children and not before.pinned:
                heappush(leaves, (before.used, id(before), before))

    def _copies(self, *leaving: KeptPrefix) -> dict[KeptPrefix, PrefixKV]:
        """Copies of the runs that share memory with the first of the `leaving` nodes: a view would hold all of it."""
        return {other: other.run.clone() for other in leaving[0].siblings - {*leaving}}

    def _forget(self, node: KeptPrefix, copies: dict[KeptPrefix, PrefixKV]) -> None:
        """Drop a node that has no children, and free the memory of its tensors."""
        self._nodes.remove(node)
        self.nbytes -= node.nbytes
        node.siblings = set()
        for other, run in copies.items():
            other.siblings = {other}
            self._put(other, run)


def _moved(node: RadixNode, inside: int, path: list[KeptPrefix], seen: int) -> tuple[RadixNode, int]:
    """The place that is `seen` tokens along a path from the place `inside` a node."""
    for each in path:
        seen, inside, node = seen - (node.run.length - inside if isinstance(node, KeptPrefix) else 0), 0, each
    return node, inside + seen


def _common(one: bytes, other: bytes) -> int:
    """The number of token ids that two byte strings have in common at their start."""
    length = min(len(one), len(other)) // ITEM
    same = np.frombuffer(one, np.int64, length) == np.frombuffer(other, np.int64, length)
    return length if same.all() else int(same.argmin())
