"""Random batches: a shared prefix, own tokens, padding, holes, positions."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from relay_hf.testing import PAD, VOCABULARY

_FIRST_ID = 3  # after padding, start and end
_MOST_OWN = 12


@dataclass(frozen=True)
class Batch:
    """The inputs of a generate() call, as lists; a mask or positions that are None are not given to it."""

    input_ids: list[list[int]]
    attention_mask: list[list[int]] | None = None
    position_ids: list[list[int]] | None = None
    bool_mask: bool = False

    def tensors(self) -> dict[str, Tensor]:
        """The keyword arguments."""
        inputs = {"input_ids": torch.tensor(self.input_ids)}
        if self.attention_mask is not None:
            mask = torch.tensor(self.attention_mask)
            inputs["attention_mask"] = mask.bool() if self.bool_mask else mask
        if self.position_ids is not None:
            inputs["position_ids"] = torch.tensor(self.position_ids)
        return inputs


@dataclass(frozen=True)
class Style:
    """What the batches of one case have in common."""

    rows: int
    prefix: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]  # what groups of rows share behind the prefix; none: they are one group
    lengths: str  # of the rows' own tokens: "ragged", "equal" or "identical" with their ids
    common_padding: int
    partly_shared: bool
    holes: bool
    mask: str  # "int64", "bool" or "none"
    filler: str  # what stands under the padding: "pad" tokens or "any"
    positions: str  # "none", "counted" as generate() does or "shifted"


def draw_ids(rng: random.Random, count: int) -> list[int]:
    """Token ids; rarely one that means padding, start or end."""
    return [rng.randrange(0 if rng.random() < 0.005 else _FIRST_ID, VOCABULARY) for _ in range(count)]


def draw_style(rng: random.Random, single: bool) -> Style:
    """The style of a case's batches; `single` makes it one row."""
    length = rng.choices((rng.randint(0, 4), rng.randint(5, 25), rng.randint(26, 60)), (6, 60, 34))[0]
    mask = rng.choices(("int64", "bool", "none"), (90, 3, 7))[0]
    return Style(
        rows=1 if single else rng.choices((1, 2, 3, 4, 5, 6), (8, 24, 24, 20, 12, 12))[0],
        prefix=tuple(draw_ids(rng, length)),
        groups=_draw_groups(rng) if rng.random() < 0.2 else (),
        lengths=rng.choices(("ragged", "equal", "identical"), (70, 20, 10))[0],
        common_padding=rng.randint(1, 6) if rng.random() < 0.15 else 0,
        partly_shared=rng.random() < 0.05,
        holes=rng.random() < 0.06,
        mask=mask,
        filler="any" if mask != "none" and rng.random() < 0.1 else "pad",
        positions=rng.choices(("none", "counted", "shifted"), (96, 2, 2))[0],
    )


def draw_batch(rng: random.Random, style: Style, rows: int) -> Batch:
    """A batch of `rows`, left-padded to one width."""
    sequences = _sequences(rng, style, rows)
    width = max(map(len, sequences)) + style.common_padding
    ids, mask = [], []
    for sequence in sequences:
        padding = width - len(sequence)
        filler = draw_ids(rng, padding) if style.filler == "any" else [PAD] * padding
        ids.append(filler + sequence)
        mask.append([0] * padding + [1] * len(sequence))
    if style.holes:
        _cut_holes(rng, mask, len(style.prefix))
    positions = None
    if style.positions != "none":
        positions = [_positions(row, 3 if style.positions == "shifted" else 0) for row in mask]
    return Batch(ids, None if style.mask == "none" else mask, positions, style.mask == "bool")


def draw_turn(rng: random.Random, rows: int) -> Batch:
    """The tokens of a next turn and their mask, left-padded."""
    style = Style(rows, (), (), "ragged", 0, False, False, "int64", "pad", "none")
    return draw_batch(rng, style, rows)


def _draw_groups(rng: random.Random) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(draw_ids(rng, rng.randint(1, 25))) for _ in range(rng.randint(2, 3)))


def _sequences(rng: random.Random, style: Style, rows: int) -> list[list[int]]:
    prefix = list(style.prefix)
    least = 0 if prefix else 1  # a row has at least one token
    if style.lengths == "identical":
        return [prefix + draw_ids(rng, rng.randint(least, _MOST_OWN))] * rows
    equal = rng.randint(least, _MOST_OWN)
    sequences = []
    for _ in range(rows):
        own = draw_ids(rng, equal if style.lengths == "equal" else rng.randint(least, _MOST_OWN))
        mine = list(prefix)
        if style.partly_shared and rng.random() < 0.5:
            part = rng.randint(0, len(mine))
            mine[part:] = draw_ids(rng, len(mine) - part)
        if style.groups:
            mine += rng.choice(style.groups)
        sequences.append(mine + own)
    return sequences


def _cut_holes(rng: random.Random, mask: list[list[int]], prefix: int) -> None:
    """Hide a few tokens, mostly behind the prefix. Every row keeps its first token and its last one."""
    for row in mask:
        first = row.index(1)
        start = first + 1 if rng.random() < 0.2 else first + max(prefix, 1)
        if rng.random() < 0.6 and start < len(row) - 1:
            begin = rng.randrange(start, len(row) - 1)
            for column in range(begin, min(begin + rng.randint(1, 3), len(row) - 1)):
                row[column] = 0


def _positions(mask: list[int], shift: int) -> list[int]:
    """As generate() counts them, or `shift` further on."""
    positions, count = [], 0
    for attended in mask:
        positions.append(count + shift if attended else 0)
        count += attended
    return positions
