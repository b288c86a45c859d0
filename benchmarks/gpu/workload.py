"""Workload K: the operator alone, decoding; and the floor of a call."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

HEADS = ((32, 8), (32, 32), (28, 4), (64, 8))
BATCHES = (1, 4, 8, 16, 32, 64, 128, 256)
PREFIXES = tuple(2**power for power in range(7, 16))
_FIRST_BATCHES, _FIRST_PREFIXES = (1, 8, 32, 128), (512, 4096, 32768)

TEXT = "K: decode, bf16, head size 128, own 128 tokens a row; heads, rows B and prefix P as in each cell's key"
FLOOR = (
    "max(bytes / copy bandwidth, FLOP / bf16 matrix rate), both measured in this run; "
    "bytes: segment once, own KV of all rows, query and output; FLOP: 4 * B * Hq * D * (P + own)"
)


@dataclass(frozen=True)
class Ceilings:
    """What the chip reaches: bytes/s of a large copy, FLOP/s of a large bf16 matrix product."""

    bandwidth: float
    matrix_rate: float


@dataclass(frozen=True)
class Decode:
    """One decode step of one layer."""

    heads: int
    kv_heads: int
    batch: int
    prefix: int
    own: int = 128
    head_size: int = 128
    itemsize: int = 2

    @property
    def key(self) -> str:
        """Such as `32/8 B=16 P=4096`."""
        return f"{self.heads}/{self.kv_heads} B={self.batch} P={self.prefix}"

    @property
    def group(self) -> int:
        """Query heads of a KV head, G."""
        return self.heads // self.kv_heads

    @property
    def stacked(self) -> int:
        """Queries that share a read of the segment, B * G."""
        return self.batch * self.group

    @property
    def flop(self) -> int:
        """Of the two products."""
        return 4 * self.batch * self.heads * self.head_size * (self.prefix + self.own)

    @property
    def query_bytes(self) -> int:
        """Of the queries, or of the output."""
        return self.batch * self.heads * self.head_size * self.itemsize

    @property
    def bytes(self) -> int:
        """The fewest that must be moved."""
        return self._kv_bytes(self.prefix + self.batch * self.own) + 2 * self.query_bytes

    @property
    def reread_bytes(self) -> int:
        """Of KV stored once a row."""
        return self._kv_bytes(self.batch * (self.prefix + self.own)) + 2 * self.query_bytes

    def floor(self, ceilings: Ceilings) -> tuple[float, str]:
        """Seconds that no implementation goes under, and what bounds them."""
        moving, computing = self.bytes / ceilings.bandwidth, self.flop / ceilings.matrix_rate
        return (moving, "memory") if moving >= computing else (computing, "arithmetic")

    def _kv_bytes(self, tokens: int) -> int:
        return 2 * tokens * self.kv_heads * self.head_size * self.itemsize


PAPER = Decode(32, 32, batch=32, prefix=4096)


def cells(dry_run: bool) -> dict[str, Decode]:
    """All shapes by key: the paper's first, then a coarse grid, then what is between; two small ones in a dry run."""
    if dry_run:
        shapes = [Decode(4, 2, 3, 40, own=9, head_size=16), Decode(2, 2, 1, 17, own=9, head_size=16)]
    else:
        shapes = [Decode(*heads, batch, prefix) for heads, batch, prefix in itertools.product(HEADS, BATCHES, PREFIXES)]
        shapes.sort(key=_rank)
    return {shape.key: shape for shape in shapes}


def _rank(shape: Decode) -> tuple[bool, int]:
    return shape != PAPER, (shape.batch not in _FIRST_BATCHES) + (shape.prefix not in _FIRST_PREFIXES)
