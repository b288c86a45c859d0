"""The geometry that all layers of one forward share: which rows are how long, and where their queries stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .segment import Segment


@dataclass(frozen=True, slots=True)
class Queries:
    """Where the queries of each row are, on the host: query `t` is `t` after the row's first.

    Attributes:
        count: Queries of a row, `T`.
        own_starts: Own columns of a row that are padding.
        columns: Own column of a row's first query.
        positions: Position of a row's first query.
    """

    count: int
    own_starts: tuple[int, ...]
    columns: tuple[int, ...]
    positions: tuple[int, ...]

    def advanced(self) -> Queries:
        """One column later."""
        columns, positions = (tuple(number + 1 for number in numbers) for numbers in (self.columns, self.positions))
        return Queries(self.count, self.own_starts, columns, positions)


class BackendState(Protocol):
    """What a backend works out from a plan once, for all layers, and keeps with it."""

    def queries_moved(self) -> None:
        """Drop what depends on where the queries are: they are elsewhere from now on."""


class GraphTables(Protocol):
    """Where kernels look up the segments of a step that is captured into a CUDA graph: memory that stays in place.

    A graph repeats what it was captured with. It serves another call once the tables hold that call's segments.
    """

    @property
    def in_use(self) -> bool:
        """Whether kernels have looked anything up."""

    def take(self, segments: Sequence[Sequence[Segment]]) -> bool:
        """Hold the segments of each layer of another call; False, and nothing is changed, where they do not fit."""


class Plan:
    """The geometry of the queries, the shared and the own keys of one forward.

    Args:
        batch, query_length, columns: `B`, `T` and `S`, the number of own columns.
        shared_length: Number of shared tokens that precede a row's own: one for all, or one for each row.
        own_start: `[B]` integer, number of leading own columns of a row that are padding. None: 0.
        own_length: `[B]` integer, number of own columns of a row that hold anything; its queries are the last `T` of
            them. None: all `S`.
        own_mask: `[B, S]` bool, True where an own column may be attended. None: everywhere.

    Note:
        Making a plan reads no tensor. `queries` reads own_start and own_length on the host, once; a backend that reads
        them on the device never asks for it, and never waits for the device. A plan belongs to one forward, or, by
        `advance`, to one decode step after another. The tensors that it was given must not change while it is in use,
        but for what `advance` and `change_rows` are told of.

    Attributes:
        state: what the backend that computes has worked out from the plan; None: nothing yet.
        tables: where the kernels look up segments and work of a step that is captured into a CUDA graph; None: they
            are looked up by what each call is given.
    """

    __slots__ = (
        "_queries",
        "batch",
        "columns",
        "own_length",
        "own_mask",
        "own_start",
        "query_length",
        "shared_length",
        "state",
        "tables",
    )

    def __init__(
        self,
        batch: int,
        query_length: int,
        columns: int,
        *,
        shared_length: int | tuple[int, ...] = 0,
        own_start: torch.Tensor | None = None,
        own_length: torch.Tensor | None = None,
        own_mask: torch.Tensor | None = None,
    ) -> None:
        self.batch = batch
        self.query_length = query_length
        self.columns = columns
        self.shared_length = (shared_length,) * batch if isinstance(shared_length, int) else shared_length
        self.own_start = own_start
        self.own_length = own_length
        self.own_mask = own_mask
        self.state: BackendState | None = None
        self.tables: GraphTables | None = None
        self._queries: Queries | None = None

    def queries(self) -> Queries:
        """Where the queries of each row are; reads own_start and own_length where that is not known yet."""
        if self._queries is None:
            starts = [0] * self.batch if self.own_start is None else self.own_start.tolist()
            lengths = [self.columns] * self.batch if self.own_length is None else self.own_length.tolist()
            columns = tuple(length - self.query_length for length in lengths)
            rows = zip(self.shared_length, columns, starts, strict=True)
            positions = tuple(shared + column - start for shared, column, start in rows)
            self._queries = Queries(self.query_length, tuple(starts), columns, positions)
        return self._queries

    def take(self, segments: Sequence[Sequence[Segment]]) -> bool:
        """Let the tables hold the segments of each layer of another call; False where they do not fit."""
        return self.tables is not None and self.tables.take(segments)

    def advance(self) -> None:
        """To the next step of a decode: every row has an own column more, as own_length, where given, says by then."""
        if self._queries is not None:
            self._queries = self._queries.advanced()
        if self.state is not None:
            self.state.queries_moved()

    def change_rows(self) -> None:
        """Take note that own_start, own_length and own_mask hold other rows than before."""
        self._queries = None
        if self.state is not None:
            self.state.queries_moved()
