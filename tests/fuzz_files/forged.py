"""Changes to what a file says and holds, after which all of its sums are right again: a stranger's work.

Each takes the parts and a source of chance, and changes the parts in place. What it returns, if anything, is the text
of the record that is to stand in the file.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

from .container import Held, Parts

Forge = Callable[[Parts, random.Random], "str | None"]

NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 2, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, math.nan, math.inf, -math.inf
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, True, "", "x" * 5000, [], {}, [[]], {"": {}}, "../../x", "\x00", "\x1b[2J\nline", "\ud800"
)  # fmt: skip
NAMES = (
    "../../0.ids", "/etc/passwd", "0.ids\x00", "0.layers.0.key/..", "\x1b[31m\n0.ids", "é" * 300, "x" * 70_000, "", " "
)  # fmt: skip
DTYPES = ("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "I64", "F32")


def _tensor(parts: Parts, rng: random.Random, ids: bool | None = None) -> Held:
    names = [name for name in parts.tensors if ids is None or name.endswith(".ids") == ids]
    return parts.tensors[rng.choice(names)] if names else Held("F32", [0], b"")


def _anything(rng: random.Random) -> Any:
    found: Any = rng.choice(NUMBERS + OTHERS)
    for _ in range(rng.choice((0, 0, 0, 50, 400, 700, 900))):
        found = [found]
    return found


def record_value(parts: Parts, rng: random.Random) -> None:
    """Anything in the place of a value at some depth, or nothing."""
    inside, last = parts.record, rng.choice(list(parts.record) or ["format"])
    while isinstance(inside.get(last), dict) and inside[last] and rng.random() < 0.7:
        inside = inside[last]
        last = rng.choice(list(inside))
    if rng.random() < 0.25:
        inside.pop(last, None)
    else:
        inside[last] = _anything(rng)


def record_extra(parts: Parts, rng: random.Random) -> None:
    inside = rng.choice([parts.record, parts.record.get("model"), parts.record.get("sha256")])
    if isinstance(inside, dict):
        inside[rng.choice(NAMES)] = _anything(rng)


def record_twice(parts: Parts, rng: random.Random) -> str:
    text = json.dumps(parts.record)
    extra = rng.choice(('"format": 1', '"prefixes": []', '"sha256": {}', '"model": {}'))
    return f"{{{extra}, {text[1:]}" if rng.random() < 0.5 else f"{text[:-1]}, {extra}}}"


def record_text(parts: Parts, rng: random.Random) -> str:
    text = json.dumps(parts.record)
    where = rng.randrange(len(text))
    return rng.choice(
        (
            "", "null", "7", '"x"', "[" * 5000, '{"a":' * 5000, text * 2, text[:where], f"\ufeff{text}",
            f"{text[:where]}{rng.choice('{}[],:0é')}{text[where + 1 :]}", f'{{"format": {"9" * 5000}}}', f"\n {text}\t",
        )
    )  # fmt: skip


def parents(parts: Parts, rng: random.Random) -> None:
    prefixes = parts.record.get("prefixes")
    if isinstance(prefixes, list) and prefixes and isinstance(prefixes[-1], dict):
        each = rng.choice([each for each in prefixes if isinstance(each, dict)])
        choices = (*range(-2, len(prefixes) + 2), None, True, "0", 0.0, [0], 2**64)
        each["parent"] = rng.choice(choices)


def token_ids(parts: Parts, rng: random.Random) -> None:
    held = _tensor(parts, rng, ids=True)
    where = rng.randrange(max(len(held.data) // 8, 1)) * 8
    number = rng.choice((-1, -(2**63), 97, 10**6, 2**63 - 1, 3))
    if held.data:
        held.data = held.data[:where] + struct.pack("<q", number) + held.data[where + 8 :]


def tensor_values(parts: Parts, rng: random.Random) -> None:
    held = _tensor(parts, rng, ids=False)
    value = rng.choice((math.nan, math.inf, -math.inf, 0.0, 3e38, 1.0))
    count = len(held.data) // 4
    if rng.random() < 0.5:
        held.data = struct.pack("<f", value) * count
    elif count:
        where = rng.randrange(count) * 4
        held.data = held.data[:where] + struct.pack("<f", value) + held.data[where + 4 :]


def tensor_shape(parts: Parts, rng: random.Random) -> None:
    """Of as many elements, or of none."""
    held = _tensor(parts, rng)
    shape = list(held.shape)
    change = rng.randrange(6)
    if change == 0:
        rng.shuffle(shape)
    elif change == 1:
        shape = [math.prod(shape)]
    elif change == 2:
        shape.insert(rng.randrange(len(shape) + 1), 1)
    elif change == 3:
        shape, held.data = [*shape[:-1], 0], b""
    elif change == 4:
        shape, held.data = [0, 2**63], b""
    elif shape and shape[0] > 1:
        held.data = held.data[: len(held.data) // shape[0] * (shape[0] - 1)]
        shape[0] -= 1
    held.shape = shape


def tensor_dtype(parts: Parts, rng: random.Random) -> None:
    _tensor(parts, rng).dtype = rng.choice(DTYPES)


def tensor_names(parts: Parts, rng: random.Random) -> None:
    names = list(parts.tensors)
    one, new = rng.choice(names or ["0.ids"]), rng.choice(NAMES)
    held = parts.tensors.pop(one, Held("F32", [0], b""))
    sums = parts.record.get("sha256")
    if rng.random() < 0.5:
        parts.tensors[one] = held
        held = Held("U8", [3], b"abc")
    elif isinstance(sums, dict):
        sums.pop(one, None)
    if rng.random() < 0.8:
        parts.tensors[new] = held


def tensors_swapped(parts: Parts, rng: random.Random) -> None:
    if len(parts.tensors) > 1:
        one, other = rng.sample(list(parts.tensors), 2)
        parts.tensors[one], parts.tensors[other] = parts.tensors[other], parts.tensors[one]


def prefixes_again(parts: Parts, rng: random.Random) -> None:
    """The last prefix once more, beside itself or behind itself."""
    prefixes = parts.record.get("prefixes")
    if not isinstance(prefixes, list) or not prefixes or not isinstance(prefixes[-1], dict):
        return
    last = len(prefixes) - 1
    for number in range(last + 1, last + 1 + rng.choice((1, 3, 40))):
        prefixes.append({**prefixes[last], "parent": rng.choice((prefixes[last].get("parent"), number - 1))})
        mine = {name: held for name, held in parts.tensors.items() if name.startswith(f"{last}.")}
        parts.tensors |= {f"{number}{name[len(str(last)) :]}": held for name, held in mine.items()}


def metadata_value(parts: Parts, rng: random.Random) -> None:
    parts.metadata[rng.choice((*NAMES, "relay_hf", "relay_hf.sha256"))] = rng.choice((*NUMBERS[:8], *OTHERS))


KINDS: tuple[Forge, ...] = (
    record_value, record_extra, record_twice, record_text, parents, token_ids, tensor_values, tensor_shape,
    tensor_dtype, tensor_names, tensors_swapped, prefixes_again, metadata_value,
)  # fmt: skip
