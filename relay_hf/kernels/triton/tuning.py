"""Chooses tile sizes and launch options of the kernels by shape class and chip, from the table `tiles.json`.

The table is written by hand, with the reason for each row, and `python -m benchmarks.tune` refines it on a chip.
Nothing is tuned while a user's call runs.
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
# The most registers of a thread, as an option of the assembler. Without it the assembler spills a few registers to fit
# one more program onto a multiprocessor (decode, head size 128, 32 queries, sm_80: 168 registers and 8 bytes spilled,
# instead of 217 and none).
MAX_REGISTERS = 255
INTERPRETER = "interpreter"  # the chip of tensors that lie on the CPU


@dataclass(frozen=True)
class Tile:
    """How a kernel is launched for one class of shapes.

    Attributes:
        kernel: `"decode"`, `"few"` for its second launch with few queries of a row and KV head, or `"prefill"`.
        chips: the chips that it is for, such as `"sm_90"`.
        head_size: the largest head size (of queries or values) that it is for.
        itemsize: bytes of an element, 2 or 4.
        block_m: queries of a tile ("few": the most queries that it is for).
        block_n: tokens of a tile.
        num_warps, num_stages: Triton's launch options.
        own_block_n: tokens of a tile of own tokens (decode).
        queries: the most stacked queries that the row is for, if that is not `block_m`.
        waves: programs of a decode's first launch for each multiprocessor; segments are split to make so many.
        reason: why these numbers were chosen.
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
        """The most stacked queries of a call that takes this row. A call with more takes it if no row is for more."""
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
    """Within it `tile` replaces the table's row of its kernel, head size, item size and `most`."""
    _overrides.append(tile)
    try:
        yield
    finally:
        _overrides.remove(tile)


_overrides: list[Tile] = []


def choose(kernel: str, chip: str, head_size: int, itemsize: int, queries: int) -> Tile:
    """The row for tiles of `queries` stacked queries: the smallest one that holds them all, else the largest one.

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
    """The table's name for a device. An unknown chip gets the name of the latest known one that is not newer."""
    if device.type == "cpu":
        return INTERPRETER
    capability = torch.cuda.get_device_capability(device)
    wanted = capability[0] * 10 + capability[1]
    known = sorted({int(chip.removeprefix("sm_")) for tile in table() for chip in tile.chips if chip.startswith("sm_")})
    older = [number for number in known if number <= wanted]
    return f"sm_{older[-1] if older else known[0]}"


@lru_cache(maxsize=64)
def overlaps(device: torch.device) -> bool:
    """Whether a launch may begin while the one before it still runs (programmatic dependent launch, from sm_90 on)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """The least number of programs that the device runs at once; 4 in the interpreter, so that splits occur there."""
    if device.type == "cpu":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
