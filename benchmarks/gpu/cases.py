"""Shapes of calls whose answers are checked: each promise of the operator, with sizes that are odd on purpose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

FACTOR = 1.5  # times the error of stock attention, that an answer may have
DTYPES = ("bfloat16", "float16", "float32")
HEAD_SIZES = (64, 80, 96, 112, 128, 160, 192, 256)
FEATURES: tuple[dict, ...] = (
    {"window": 61},
    {"softcap": 5.0},
    {"sinks": True},
    {"alibi": True},
    {"own_start": True, "own_length": True},
    {"holes": True},
    {"window": 29, "softcap": 3.0, "sinks": True, "alibi": True, "own_start": True, "own_length": True, "holes": True},
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
        sinks, alibi, own_start, own_length, holes: whether there are any.
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
    alibi: bool = False
    own_start: bool = False
    own_length: bool = False
    holes: bool = False

    @property
    def key(self) -> str:
        """The fields that are not the default's."""
        set_ = ((field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self))
        return " ".join(f"{name}={value}" for name, value, default in set_ if value != default) or "default"


ONE_CALL = {
    # The merge is the second launch of a decode.
    "decode": Case(rows=5, kv_heads=2, group=4, head_size=128, segments=((515, None), (77, (0, 3))), own_length=True),
    "prefill": Case(rows=2, kv_heads=2, group=4, head_size=128, length=33, columns=70, own_start=True),
}


def grid() -> list[Case]:
    """All of them; what a line does not vary, it takes in turn."""
    lengths = (1, 2, 5, 33, 257)
    found = []
    for i, size in enumerate(HEAD_SIZES):
        for j, dtype in enumerate(DTYPES):
            length = lengths[(i + 2 * j) % len(lengths)]
            found.append(Case(head_size=size, dtype=dtype, length=length, columns=length + 36))
    for group in range(1, 17):
        length = (1, 3, 37)[group % 3]
        found.append(Case(group=group, dtype=DTYPES[group % 3], length=length, columns=length + 8, rows=5))
    for i, sizes in enumerate(((64, 128), (192, 128), (128, 64), (80, 112))):
        found.append(Case(head_size=sizes[0], value_size=sizes[1], length=(1, 70)[i % 2], columns=90))
    for i, feature in enumerate(FEATURES):
        for j, length in enumerate((1, 5, 33, 257)):
            found.append(Case(**feature, length=length, columns=length + 30, dtype=DTYPES[(i + j) % 3], head_size=128))
    for i, segments in enumerate(SEGMENTS):
        found.append(Case(**segments, dtype=DTYPES[i % 3], head_size=128))
        length = (5, 33)[i % 2]
        longer = {**segments, "length": length, "columns": segments.get("columns", 37) + length}
        found.append(Case(**longer, dtype=DTYPES[(i + 1) % 3], head_size=80))
    return found
