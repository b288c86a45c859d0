"""Workloads G1 and G2, and a single row: which calls are measured, with which contenders, the most important first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from relay_hf.cli.benchmark.timed_model import ModelShape
from relay_hf.cli.benchmark.workload import Workload

LLAMA_2 = ModelShape(hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, vocab=32000)
LLAMA_3 = ModelShape(hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocab=128256)
_TINY = ModelShape(hidden=32, intermediate=48, layers=2, heads=2, kv_heads=1, vocab=97)

TEXT = (
    "G1: Llama-2-7B shape, B=32; G2: Llama-3-8B shape, B as in the key; one row: G1's model, B=1. bf16, random "
    "weights, P shared + 64 own tokens, 128 new ones, forced, greedy"
)
STATIC = "static-cache"
WITHOUT_PREFIX = ("stock", "continuous-batching", "relay-16", STATIC)
WITH_PREFIX = ("stock", "prefix-copied", "continuous-batching", "relay-cold", "relay-kept", STATIC)
ONE_ROW = "one row"
LEAST_PREFIX = 16  # tokens that relay-16 shares in a cell with no prefix: the fewest that are relayed by default


@dataclass(frozen=True)
class Cell:
    """A call of generate(), and who makes it."""

    name: str
    workload: Workload
    contenders: tuple[str, ...]

    @property
    def key(self) -> str:
        """Such as `G1 B=32 P=2048`."""
        return f"{self.name} B={self.workload.rows} P={self.workload.prefix}"


def cells(dry_run: bool) -> dict[str, Cell]:
    """All of them by key, in the order in which they run."""
    found = _tiny() if dry_run else _all()
    return {cell.key: cell for cell in found}


def with_least_prefix(workload: Workload) -> Workload:
    """The workload of relay-16: policy "always" leaves calls that share nothing to stock, by design."""
    return dataclasses.replace(workload, prefix=LEAST_PREFIX)


def _all() -> Iterable[Cell]:
    yield _g1(2048)
    yield _g2(32, 2048)
    yield from (_g1(0), _g1(8192))
    yield from (_g2(32, 0), _g2(32, 8192))
    yield from (_g1(512), _g1(4096), _g1(1024))
    for rows in (128, 8):
        yield from (_g2(rows, prefix) for prefix in (2048, 0, 8192, 512, 4096, 1024))
    yield from (_g2(32, prefix) for prefix in (512, 4096, 1024))
    yield from (_row(LLAMA_2, prefix) for prefix in (4096, 0, 1024))


def _tiny() -> Iterable[Cell]:
    for name, rows, prefix in (("G1", 3, 24), ("G1", 3, 0), ("G2", 2, 24)):
        yield _batch(name, Workload(_TINY, rows, prefix, own=4, new=3))
    yield from (_row(_TINY, prefix, own=4, new=3) for prefix in (24, 0))


def _g1(prefix: int) -> Cell:
    return _batch("G1", Workload(LLAMA_2, 32, prefix, own=64, new=128))


def _g2(rows: int, prefix: int) -> Cell:
    return _batch("G2", Workload(LLAMA_3, rows, prefix, own=64, new=128))


def _batch(name: str, workload: Workload) -> Cell:
    return Cell(name, workload, WITH_PREFIX if workload.prefix else WITHOUT_PREFIX)


def _row(model: ModelShape, prefix: int, own: int = 64, new: int = 128) -> Cell:
    contenders = ("stock", "relay-kept") if prefix else ("stock",)  # no row shares with itself
    return Cell(ONE_ROW, Workload(model, 1, prefix, own, new), contenders)
