"""What an engine is asked for: pieces of prompts, each with the rows that start with it, as plain JSON.

Engines run in environments of their own, so this module imports nothing beside Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Piece:
    """A stretch of tokens that several rows have at the same positions.

    Attributes:
        start: position of its first token.
        ids: its tokens.
        rows: the rows that have it, in order.
        kept: whether a later call starts with it, too; own tokens are not kept.
    """

    start: int
    ids: tuple[int, ...]
    rows: tuple[int, ...]
    kept: bool

    @property
    def end(self) -> int:
        """Position behind its last token."""
        return self.start + len(self.ids)


@dataclass(frozen=True)
class Job:
    """A call: prompts as a tree of pieces, the number of new tokens of each row, and how they are chosen.

    Attributes:
        pieces: level by level; those of a level are side by side.
        rows: sequences that the model runs.
        answers: rows of each prompt.
        new: tokens that each row gets.
        top_k: rows are sampled from so many best tokens; 0: greedily.
    """

    pieces: tuple[Piece, ...]
    rows: int
    answers: int
    new: int
    top_k: int

    @property
    def levels(self) -> list[list[Piece]]:
        """The pieces by where they start, first ones first."""
        starts = sorted({piece.start for piece in self.pieces})
        return [[piece for piece in self.pieces if piece.start == start] for start in starts]

    @property
    def cells(self) -> int:
        """Tokens whose KV is stored where each piece is stored once."""
        return sum(len(piece.ids) for piece in self.pieces) + self.rows * self.new

    @property
    def shared(self) -> list[int]:
        """The tokens that all rows start with and that are kept."""
        everyone = [piece for piece in self.pieces if len(piece.rows) == self.rows and piece.kept]
        return [token for piece in everyone for token in piece.ids]

    def prompts(self) -> list[list[int]]:
        """The ids of each prompt, `[prompts][tokens]`."""
        return [self.row(number) for number in range(0, self.rows, self.answers)]

    def row(self, number: int) -> list[int]:
        """The ids of the prompt of a row."""
        return [token for level in self.levels for piece in level if number in piece.rows for token in piece.ids]

    def last_piece(self, row: int) -> Piece:
        """The piece whose last token says what a row's first new token is."""
        return max((piece for piece in self.pieces if row in piece.rows), key=lambda piece: piece.start)

    def without_prefix(self) -> Job:
        """The own tokens alone, from position 0: another job, with less work."""
        own = [piece for piece in self.pieces if not piece.kept]
        pieces = tuple(Piece(0, piece.ids, piece.rows, False) for piece in own)
        return Job(pieces, self.rows, self.answers, self.new, self.top_k)

    def mapped(self, other: Callable[[int], int]) -> Job:
        """A job of the same shape, with other tokens."""
        pieces = tuple(replace(piece, ids=tuple(map(other, piece.ids))) for piece in self.pieces)
        return replace(self, pieces=pieces)

    def as_json(self) -> dict[str, Any]:
        """As `of_json` reads it."""
        return asdict(self)

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Job:
        """What `as_json` gave, after a way through JSON."""
        pieces = tuple(
            Piece(each["start"], tuple(each["ids"]), tuple(each["rows"]), each["kept"]) for each in found["pieces"]
        )
        return cls(**{**found, "pieces": pieces})

    @classmethod
    def of_prompts(
        cls, prompts: Sequence[Sequence[int]], levels: Sequence[tuple[int, int]], answers: int, new: int, top_k: int
    ) -> Job:
        """The job of prompts of one length.

        Args:
            prompts: ids, `[prompts][tokens]`.
            levels: what is shared, level by level: tokens, and number of groups of prompts.
            answers: rows of each prompt.
            new: tokens that each row gets.
            top_k: as of `Job`.
        """
        pieces, start, rows = [], 0, len(prompts) * answers
        own = len(prompts[0]) - sum(tokens for tokens, _ in levels)
        for number, (tokens, groups) in enumerate([*levels, (own, len(prompts))]):
            size = len(prompts) // groups
            for group in range(groups):
                ids = tuple(prompts[group * size][start : start + tokens])
                members = tuple(range(group * size * answers, (group + 1) * size * answers))
                pieces.append(Piece(start, ids, members, number < len(levels)))
            start += tokens
        return cls(tuple(pieces), rows, answers, new, top_k)
