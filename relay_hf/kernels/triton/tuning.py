"""Tile sizes and launch options by shape class and chip, read from `tiles.json`.

The table is written by hand with the reason for each row, and refined by `python -m benchmarks.tune` on a chip; nothing
is tuned while a user's call runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("tiles.json")
# Said to the assembler, all that a thread may have: left to itself it spills a few registers where that lets one more
# program onto a multiprocessor (decode, head size 128, 32 queries, sm_80: 168 registers and 8 bytes for 217 and none).
MAX_REGISTERS = 255
INTERPRETER = "interpreter"  # the chip of tensors that lie on the CPU


@dataclass(frozen=True)
class Tile:
    """How a kernel is launched for one class of shapes.

    Attributes:
        kernel: `"decode"`, `"few"` for its second launch with few queries of a row and KV head, or `"prefill"`.
        chips: what it is for, such as `"sm_90"`.
        head_size: the largest head size (of queries or values) it is for.
        itemsize: bytes of an element, 2 or 4.
        block_m: queries of a tile ("few": the most queries that it is for).
        block_n: tokens of a tile.
        num_warps, num_stages: Triton's.
        own_block_n: tokens of a tile where rows read their own (decode).
        queries: the most stacked queries that the row is for, where that is not `block_m`.
        waves: programs of a decode's first launch for each multiprocessor; segments are split to make that many.
        reason: why these and not others.
    """

    kernel: str
    chips: tuple[str, ...]
    head_size: int
    itemsize: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    own_block_n: int = 0
    waves: float = 0.0
    queries: int = 0
    reason: str = ""

    @property
    def most(self) -> int:
        """Stacked queries up to which a call takes the row; with more of them it does if no row is for more."""
        return self.queries or self.block_m

    def to_json(self) -> dict[str, object]:
        """The row as it stands in the table."""
        return {name: value for name, value in asdict(self).items() if value not in (0, 0.0, "")}


@lru_cache(maxsize=1)
def table() -> tuple[Tile, ...]:
    """The rows of the table."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["tiles"]
    return tuple(Tile(**{**row, "chips": tuple(row["chips"])}) for row in rows)


@contextmanager
def override(tile: Tile) -> Iterator[None]:
    """Within it `tile` stands in the place of the table's row of its kernel, head size, item size and `most`."""
    _overrides.append(tile)
    try:
        yield
    finally:
        _overrides.remove(tile)


_overrides: list[Tile] = []


def choose(kernel: str, chip: str, head_size: int, itemsize: int, queries: int) -> Tile:
    """The row for tiles of `queries` stacked queries: the smallest that holds them all, else the largest there is.

    Args:
        kernel: as in `Tile`.
        chip: a name of the table, from `chip_of`.
        head_size: the larger of the two head sizes.
        itemsize: bytes of an element.
        queries: queries that may share a tile.
    """
    return _choose(kernel, chip, head_size, itemsize, queries, tuple(_overrides))


@lru_cache(maxsize=512)
def _choose(kernel: str, chip: str, head_size: int, itemsize: int, queries: int, overrides: tuple[Tile, ...]) -> Tile:
    rows = [tile for tile in table() if tile.kernel == kernel and chip in tile.chips and tile.itemsize == itemsize]
    width = min(tile.head_size for tile in rows if tile.head_size >= head_size)
    by_size = {tile.most: tile for tile in rows if tile.head_size == width}
    for tile in overrides:
        if (tile.kernel, tile.head_size, tile.itemsize) == (kernel, width, itemsize) and tile.most in by_size:
            by_size[tile.most] = tile
    sizes = sorted(by_size)
    return by_size[next((size for size in sizes if size >= queries), sizes[-1])]


@lru_cache(maxsize=64)
def chip_of(device: torch.device) -> str:
    """The table's name for a device: of chips it does not know, the latest known one that is not newer."""
    if device.type == "cpu":
        return INTERPRETER
    capability = torch.cuda.get_device_capability(device)
    wanted = capability[0] * 10 + capability[1]
    known = sorted({int(chip.removeprefix("sm_")) for tile in table() for chip in tile.chips if chip.startswith("sm_")})
    older = [number for number in known if number <= wanted]
    return f"sm_{older[-1] if older else known[0]}"


@lru_cache(maxsize=64)
def overlaps(device: torch.device) -> bool:
    """Whether a launch may begin before the one before it has ended (programmatic dependent launch, from sm_90 on)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """How many programs the device runs at the same time at least; 4 in the interpreter, so that splits occur there."""
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
