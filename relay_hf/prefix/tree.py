"""The batch as a tree: runs of tokens, each with the rows that go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .prompts import Prompts

# Columns that are compared at once: few at first, because most short runs end in the first columns; then twice as many
# each time. So the columns that are compared in vain are at most as many as the run has.
_FIRST_WINDOW, _LAST_WINDOW = 64, 1024


@dataclass(eq=False)
class PrefixNode:
    """Tokens that several rows have in common, at the same positions and after the same tokens.

    Attributes:
        start: position of the first token.
        ids: `[n]` int64, on the host.
        rows: the rows that go through it, ascending.
        children: the runs that follow it in some of the rows; no row is in two of them.
        kept: an earlier call has prefilled and kept it.
    """

    start: int
    ids: Tensor
    rows: tuple[int, ...]
    children: list[PrefixNode] = field(default_factory=list)
    kept: bool = False

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.start + len(self.ids)

    @property
    def ways(self) -> int:
        """The number of ways on after the run: its children, and each row that is in none of them."""
        return len(self.children) + len(self.rows) - sum(len(child.rows) for child in self.children)

    def __repr__(self) -> str:
        kept = ", kept" * self.kept
        return f"Run({self.start}:{self.end}, {len(self.rows)} rows, {len(self.children)} children{kept})"


def walk(runs: list[PrefixNode]) -> Iterator[tuple[int, PrefixNode]]:
    """Every run of a forest after the run before it, with its depth from 0."""
    stack = [(0, run) for run in reversed(runs)]
    while stack:
        depth, run = stack.pop()
        yield depth, run
        stack += [(depth + 1, child) for child in reversed(run.children)]


def shared_runs(prompts: Prompts, own: int) -> list[PrefixNode]:
    """The runs that at least two rows share, as a forest. Each row keeps at least `own` tokens of its own.

    Every token of every row is compared at most twice for each run that it is in.
    """
    lengths = (prompts.end - prompts.start).numpy() - own
    ids = prompts.ids.numpy()
    if prompts.start.any():
        lefts = np.zeros((len(ids), max(int(lengths.max(initial=0)), 0)), np.int64)
        for target, row in zip(lefts, prompts.rows(own), strict=True):
            target[: len(row)] = row.numpy()
        ids = lefts
    roots: list[PrefixNode] = []
    todo = [(np.arange(len(ids)), 0, roots)]
    while todo:
        rows, start, found = todo.pop()
        for group in _grouped(rows[lengths[rows] > start], ids, start):
            end = _end(ids, group, start, int(lengths[group].min()))
            run = PrefixNode(start, torch.from_numpy(ids[group[0], start:end].copy()), tuple(group.tolist()))
            found.append(run)
            todo.append((group, end, run.children))
    return roots


def _grouped(rows: np.ndarray, ids: np.ndarray, column: int) -> list[np.ndarray]:
    """Groups of rows with the same token in a column, without groups of one row."""
    if len(rows) < 2:
        return []
    tokens = ids[rows, column]
    if (tokens == tokens[0]).all():
        return [rows]
    order = np.argsort(tokens, kind="stable")
    cuts = np.flatnonzero(np.diff(tokens[order])) + 1
    groups = [np.sort(group) for group in np.split(rows[order], cuts)]
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def _end(ids: np.ndarray, rows: np.ndarray, start: int, limit: int) -> int:
    """The column, `limit` at most, in which the rows no longer have the same token."""
    window = _FIRST_WINDOW
    while start < limit:
        stop = min(start + window, limit)
        part = ids[:, start:stop] if len(rows) == len(ids) else ids[rows, start:stop]  # a view, or a copy
        same = part == part[0]
        if not same.all():
            return start + int(same.all(axis=0).argmin())
        start, window = stop, min(2 * window, _LAST_WINDOW)
    return limit


def divided(runs: list[PrefixNode], kept: Callable[[int, int], int], rows: Sequence[Tensor]) -> list[PrefixNode]:
    """The forest with runs divided where kept prefixes end, and with runs of single rows that have longer kept ones.

    Args:
        runs: a forest; it is not changed.
        kept: `kept(row, first)`: how many of the first tokens of a row are kept.
        rows: the tokens of each row.
    """
    forest: list[PrefixNode] = []
    todo: list[tuple[list[PrefixNode], int, Sequence[int], list[PrefixNode]]] = [(runs, 0, range(len(rows)), forest)]
    while todo:
        level, start, members, target = todo.pop()
        alone = set(members)
        for run in level:
            alone.difference_update(run.rows)
            length = kept(run.rows[0], run.end) - run.start
            if length <= 0:
                target.append(run)
                continue
            head = PrefixNode(run.start, run.ids[:length], run.rows, kept=True)
            target.append(head)
            if head.end < run.end:
                head.children.append(PrefixNode(head.end, run.ids[length:], run.rows, run.children))
            else:
                todo.append((run.children, run.end, run.rows, head.children))
        for row in sorted(alone):
            end = kept(row, len(rows[row]))
            if end > start:
                target.append(PrefixNode(start, rows[row][start:end], (row,), kept=True))
    return forest


def pruned(runs: list[PrefixNode], pays: Callable[[int, PrefixNode], bool]) -> list[PrefixNode]:
    """The forest without the runs that don't pay. The tokens of such a run are added to the runs that follow it.

    Args:
        runs: a forest; it is not changed.
        pays: whether it pays to share a run with so many tokens: its own, and those added from runs before it.
    """
    kept: list[PrefixNode] = []
    # A run, the tokens added from runs before it, their first position, and the list that it goes to if it pays.
    todo: list[tuple[PrefixNode, list[Tensor], int, list[PrefixNode]]] = [
        (run, [], run.start, kept) for run in reversed(runs)
    ]
    while todo:
        run, before, start, target = todo.pop()
        if pays(run.end - start, run):
            target.append(PrefixNode(start, torch.cat([*before, run.ids]), run.rows, kept=run.kept))
            todo += [(child, [], child.start, target[-1].children) for child in reversed(run.children)]
        else:
            todo += [(child, [*before, run.ids], start, target) for child in reversed(run.children)]
    return kept
