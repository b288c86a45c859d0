"""The plan of one forward, which all its layers share: lengths of the rows, and positions of their queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .segment import Segment


@dataclass(frozen=True, slots=True)
class Queries:
    """The places of each row's queries, on the host: query `t` is `t` columns after the row's first query.

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
    """Tables that a backend computes from a plan once, for all layers, and keeps with the plan."""

    def queries_moved(self) -> None:
        """Drop the tables that depend on the queries' positions, because these have changed."""


class GraphTables(Protocol):
    """Tables at fixed addresses, in which kernels look up the segments of a step that is captured into a CUDA graph.

    A graph repeats the addresses that it was captured with. It serves another call once the tables hold that call's
    segments.
    """

    @property
    def in_use(self) -> bool:
        """Whether kernels have used the tables."""

    def take(self, segments: Sequence[Sequence[Segment]]) -> bool:
        """Hold the segments of each layer of another call. If they do not fit, nothing changes; returns False."""


class Plan:
    """The geometry of the queries, the shared and the own keys of one forward.

    Args:
        batch, query_length, columns: `B`, `T` and `S`, the number of own columns.
        shared_length: Number of shared tokens that precede a row's own: one for all, or one for each row.
        own_start: `[B]` integer, number of leading own columns of a row that are padding. None: 0.
        own_length: `[B]` integer, number of own columns of a row that are filled; its queries are the last `T` of
            them. None: all `S`.
        own_mask: `[B, S]` bool, True where an own column may be attended. None: everywhere.

    Note:
        A new plan reads no tensor. `queries` reads own_start and own_length on the host, once. A backend that reads
        these on the device never uses `queries`, and so never waits for the device. A plan belongs to one forward, or,
        by `advance`, to one decode step after another. Its tensors must not change while it is in use, unless `advance`
        or `change_rows` is called for the change.

    Attributes:
        state: tables that the backend has computed from the plan; None: none yet.
        tables: tables of segments and work for a step that is captured into a CUDA graph; None: the kernels use the
            arguments of each call.
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
        """The places of each row's queries. The first use reads own_start and own_length."""
        if self._queries is None:
            starts = [0] * self.batch if self.own_start is None else self.own_start.tolist()
            lengths = [self.columns] * self.batch if self.own_length is None else self.own_length.tolist()
            columns = tuple(length - self.query_length for length in lengths)
            rows = zip(self.shared_length, columns, starts, strict=True)
            positions = tuple(shared + column - start for shared, column, start in rows)
            self._queries = Queries(self.query_length, tuple(starts), columns, positions)
        return self._queries

    def take(self, segments: Sequence[Sequence[Segment]]) -> bool:
        """Let the tables hold the segments of each layer of another call; False if they do not fit."""
        return self.tables is not None and self.tables.take(segments)

    def advance(self) -> None:
        """Move to the next decode step: every row has one more own column, which the caller has added to own_length."""
        if self._queries is not None:
            self._queries = self._queries.advanced()
        if self.state is not None:
            self.state.queries_moved()

    def change_rows(self) -> None:
        """Note that own_start, own_length and own_mask now belong to other rows."""
        self._queries = None
        if self.state is not None:
            self.state.queries_moved()
