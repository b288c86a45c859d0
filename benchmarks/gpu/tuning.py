"""What the tuner tries for a row of the table of tiles, on which shapes, and what it writes back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from relay_hf.cli.output_file import write_output

from .cases import Case, filling
from .workload import Decode

if TYPE_CHECKING:
    from relay_hf.kernels.triton.tuning import Tile

_BLOCK_N, _WARPS, _STAGES, _WAVES = (32, 64, 128), (4, 8), (2, 3, 4), (1.0, 2.0, 3.0, 4.0)
_FEW = ((8, 16, 32), (1, 2), (1, 2, 3))  # tokens, warps and stages of what takes queries without matrix units
GAIN = 0.02  # less than that is noise: the row stays as it is


@dataclass(frozen=True)
class Shape:
    """What is timed: segment and own tokens as in workload K, `length` queries a row."""

    decode: Decode
    length: int = 1


@dataclass(frozen=True)
class Outcome:
    """What was found for a row of the table.

    Attributes:
        before: the row.
        shapes: what was timed.
        best: the fastest candidate, or the row itself.
        seconds, seconds_before: of the two, by shape.
        tried: candidates that were right and were timed.
    """

    before: Tile
    shapes: Sequence[Shape]
    best: Tile
    seconds: tuple[float, ...]
    seconds_before: tuple[float, ...]
    tried: int

    @property
    def ratio(self) -> float:
        """Time of the best one over that of the row, the geometric mean over shapes."""
        return mean_ratio(self.seconds, self.seconds_before)

    def row(self, chip: str, chip_name: str) -> Tile:
        """The row for the chip, with the figures that speak for it."""
        times = ", ".join(f"{1e6 * seconds:.1f}" for seconds in self.seconds)
        shapes = ", ".join(label(shape) for shape in self.shapes)
        reason = f"{chip_name}: {times} us at {shapes}; the best of {self.tried}"
        if self.best != self.before:
            reason += f", {self.ratio:.2f} of the time of {settings(self.before)}"
        return dataclasses.replace(self.best, chips=(chip,), reason=reason)


def mean_ratio(seconds: Sequence[float], before: Sequence[float]) -> float:
    """Geometric mean of the ratios by shape."""
    return math.exp(sum(math.log(new / old) for new, old in zip(seconds, before, strict=True)) / len(seconds))


def settings(tile: Tile) -> str:
    """What of a tile is tuned."""
    text = f"block_n={tile.block_n} num_warps={tile.num_warps} num_stages={tile.num_stages}"
    return f"{text} own_block_n={tile.own_block_n} waves={tile.waves:g}" if tile.kernel == "decode" else text


def name(tile: Tile) -> str:
    """The class of shapes that a row is for."""
    return f"{tile.kernel} head_size={tile.head_size} itemsize={tile.itemsize} queries={tile.most}"


def label(shape: Shape) -> str:
    """A shape in words."""
    decode = shape.decode
    own = "" if decode.own in (Decode.own, shape.length) else f" own={decode.own}"
    return decode.key + own + (f" T={shape.length}" if shape.length > 1 else "")


def is_largest(tile: Tile, rows: Sequence[Tile]) -> bool:
    """Whether none of `rows` is for the same calls and more queries."""
    same = [row for row in rows if _calls(row) == _calls(tile)]
    return tile.most == max(row.most for row in same)


def order(rows: Sequence[Tile], chip: str) -> list[Tile]:
    """The chip's rows, the most used first: 16-bit, head size 128, decode."""
    mine = [row for row in rows if chip in row.chips]
    return sorted(mine, key=lambda t: (t.itemsize, t.head_size != 128, t.head_size, t.kernel, t.most))


def first_candidates(tile: Tile, dry_run: bool = False) -> list[Tile]:
    """The row itself, and other tiles of tokens with other launch options."""
    choices = _FEW if tile.kernel == "few" else (_BLOCK_N, _WARPS, _STAGES)
    options = itertools.product((16, 32), (4,), (1,)) if dry_run else itertools.product(*choices)
    found = [dataclasses.replace(tile, block_n=n, num_warps=w, num_stages=s) for n, w, s in options]
    return [tile, *(each for each in found if each != tile)]


def second_candidates(tile: Tile, dry_run: bool = False) -> list[Tile]:
    """The best of the first, and other tiles of own tokens and splits."""
    if tile.kernel != "decode":
        return []
    options = itertools.product((16,), (1.0,)) if dry_run else itertools.product(_BLOCK_N, _WAVES)
    found = [dataclasses.replace(tile, own_block_n=n, waves=waves) for n, waves in options]
    return [each for each in found if each != tile]


def shapes_of(tile: Tile, largest: bool, dry_run: bool = False) -> list[Shape]:
    """Shapes that take the row; `largest`: no row of its class has larger tiles of queries.

    Those of a decode take it for their segment: three of them as in workload K, one whose own tokens are split and read
    beside it, and one that takes it in the second launch too, with as many queries in a single row.
    """
    options = {"head_size": tile.head_size, "itemsize": tile.itemsize}
    if dry_run:
        options["head_size"] = 16
        length = 64 if tile.kernel == "prefill" else 1
        return [Shape(Decode(2, 2, 2, 20, own=length + 4, **options), length)]
    if tile.kernel == "few":  # so many rows that their own tokens are read by the second launch
        kv_heads = 32 // tile.block_m
        return [Shape(Decode(32, kv_heads, rows, prefix, **options)) for rows, prefix in ((256, 128), (32, 2048))]
    if tile.kernel == "decode":
        rows = max(1, tile.most // 4)
        found = [(32, 8, rows, 2048), (32, 8, rows, 16384), (32, 32, tile.most, 4096)]
        shapes = [Shape(Decode(*each, **options)) for each in found]
        shapes.append(Shape(Decode(64, 8, max(1, tile.most // 8), 2048, own=1024, **options)))
        return [*shapes, Shape(Decode(32, 8, 1, 4096, **options), rows)]
    found = [(32, 8, 8, 2048), (32, 8, 1, 8192), (32, 32, 4, 1024)]
    shapes = []
    for heads, kv_heads, rows, prefix in found:
        length = 512 if largest else max(1, tile.block_m * kv_heads // heads)
        rows = max(rows, math.ceil(filling(heads // kv_heads, length) / kv_heads))
        shapes.append(Shape(Decode(heads, kv_heads, rows, prefix, own=length, **options), length))
    return shapes


def case_of(shape: Shape, dtype: str) -> Case:
    """A call that compiles to what `shape` does, small enough for the float64 reference."""
    decode = shape.decode
    return Case(
        rows=decode.batch,
        kv_heads=decode.kv_heads,
        group=decode.group,
        head_size=decode.head_size,
        segments=((min(decode.prefix, 1031), None),),
        columns=decode.own + 37,
        length=shape.length,
        dtype=dtype,
        own_length=True,
    )


def rewritten(rows: Sequence[Tile], chip: str, new: Mapping[Tile, Tile]) -> list[Tile]:
    """The table with `new` rows for the chip in place of old ones, which stay for their other chips."""
    found = []
    for row in rows:
        if row not in new:
            found.append(row)
            continue
        others = tuple(each for each in row.chips if each != chip)
        found += [dataclasses.replace(row, chips=others)] if others else []
        found.append(new[row])
    return found


def write(path: Path, rows: Sequence[Tile]) -> None:
    """The table as a file."""
    lines = ",\n".join(" " + json.dumps(row.to_json()) for row in rows)
    write_output(path, lambda to: to.write_text(f'{{"tiles": [\n{lines}\n]}}\n', encoding="utf-8"))


def _calls(tile: Tile) -> tuple[str, int, int]:
    return tile.kernel, tile.head_size, tile.itemsize
