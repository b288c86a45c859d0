"""Shapes of calls whose answers are checked: each promise of the operator, with sizes that are odd on purpose."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

# Times the error of stock attention, that an answer may have. In float32 the order of sums decides.
FACTOR = {"float32": 2.0, "bfloat16": 1.5, "float16": 1.5}
_MULTIPROCESSORS, _QUERIES = 192, 64  # more than any chip has, and of a tile
DTYPES = ("bfloat16", "float16", "float32")
HEAD_SIZES = (64, 80, 96, 112, 128, 160, 192, 256)
FEATURES: tuple[dict, ...] = (
    {"window": 61},
    {"softcap": 5.0},
    {"sinks": True},
    {"own_start": True, "own_length": True},
    {"holes": True},
    {"window": 29, "softcap": 3.0, "sinks": True, "own_start": True, "own_length": True, "holes": True},
)
_TREE = ((63, None), (45, (0, 2)), (0, None), (1, (1,)), (131, (4, 1)))
SEGMENTS: tuple[dict, ...] = (
    {"segments": ()},
    {"segments": ((0, None),), "columns": 1},
    {"segments": ((1, None),), "columns": 1},
    {"segments": ((1, None),), "rows": 1},
    {"segments": ((1025, None),), "columns": 129, "group": 7},
    {"segments": ((4099, None),), "rows": 33, "group": 4},
    {"segments": ((2047, None),), "columns": 1023, "rows": 70, "group": 1},
    {"segments": _TREE, "rows": 5},
    {"segments": _TREE, "rows": 5, "own_start": True, "own_length": True, "window": 50},
)


@dataclass(frozen=True)
class Case:
    """The shape of a call and the features that it uses.

    Attributes:
        rows, kv_heads, group, head_size, value_size: B, Hkv, Hq / Hkv, D and Dv (None: D).
        segments: tokens of each, and the rows that use it (None: all).
        columns, length: own columns S, and queries of a row T.
        dtype: torch's name.
        window, softcap: as the operator takes them.
        sinks, own_start, own_length, holes: whether there are any.
    """

    rows: int = 3
    kv_heads: int = 2
    group: int = 2
    head_size: int = 64
    value_size: int | None = None
    segments: tuple[tuple[int, tuple[int, ...] | None], ...] = ((111, None),)
    columns: int = 37
    length: int = 1
    dtype: str = "bfloat16"
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    own_start: bool = False
    own_length: bool = False
    holes: bool = False

    @property
    def key(self) -> str:
        """The fields that are not the default's."""
        set_ = ((field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self))
        return " ".join(f"{name}={value}" for name, value, default in set_ if value != default) or "default"


def split(case: Case, length: int = 1) -> Case:
    """So many own tokens on so few rows that they are split too: parts of a decode's first launch, then merged."""
    return dataclasses.replace(case, length=length, columns=max(case.columns, 300) + length)


def prefill(case: Case, length: int) -> Case:
    """So many queries a row, on so many KV heads, that each row's tiles fill the chip without its other rows."""
    kv_heads = math.ceil(filling(case.group, length) / case.rows)
    return dataclasses.replace(
        case, length=length, columns=case.columns + length, kv_heads=max(case.kv_heads, kv_heads)
    )


def filling(group: int, length: int) -> int:
    """Rows times KV heads whose tiles of queries fill any chip."""
    return math.ceil(_MULTIPROCESSORS / math.ceil(group * length / _QUERIES))


_SMALL = Case(rows=5, group=4, head_size=128, segments=((515, None), (77, (0, 3))), own_length=True)
ONE_CALL = {  # one for each way through the kernels
    "decode": _SMALL,  # segments, then own tokens with the merge
    "split": split(_SMALL, 5),  # segments and own tokens in splits, then the merge
    "prefill": prefill(dataclasses.replace(_SMALL, own_start=True), 129),
}


def grid() -> list[Case]:
    """All of them; what a line does not vary, it takes in turn."""
    found = []
    for i, size in enumerate(HEAD_SIZES):
        for j, dtype in enumerate(DTYPES):
            case, length = Case(head_size=size, dtype=dtype), (1, 2, 5)[(i + j) % 3]
            found.append(dataclasses.replace(case, length=length, columns=length + 36))
            found.append(prefill(case, (33, 257)[(i + j) % 2]))
        found.append(split(dataclasses.replace(case, dtype=DTYPES[i % 3]), (1, 2, 5)[i % 3]))
    for group in range(1, 17):
        case = Case(group=group, dtype=DTYPES[group % 3], rows=5)
        found.append((case, split(case, 3), prefill(case, 70))[group % 3])
    for sizes in ((64, 128), (192, 128), (128, 64), (80, 112)):
        case = Case(head_size=sizes[0], value_size=sizes[1], columns=20)
        found += [case, split(case), prefill(case, 70)]
    for i, feature in enumerate(FEATURES):
        cases = [Case(**feature, head_size=128, length=length, columns=length + 30) for length in (1, 5, 257)]
        cases += [split(cases[0]), split(cases[1], 33), prefill(cases[0], 33), prefill(cases[0], 257)]
        found += [dataclasses.replace(case, dtype=DTYPES[(i + j) % 3]) for j, case in enumerate(cases)]
    for i, segments in enumerate(SEGMENTS):
        case = Case(**segments)
        length = (5, 33)[i % 2]
        longer = dataclasses.replace(case, length=length, columns=case.columns + length)
        ways = [(case, 128), (longer, 80), (split(case), 128), (prefill(case, 70), 80)]
        found += [
            dataclasses.replace(way, dtype=DTYPES[(i + j) % 3], head_size=size) for j, (way, size) in enumerate(ways)
        ]
    return found
