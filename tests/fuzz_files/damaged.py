"""Changes to a file's header and to its bytes, after which its sums are what they were."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from .container import DIGEST, RECORD, File
from .forged import DTYPES, NAMES, NUMBERS, OTHERS


def _entry(file: File, rng: random.Random) -> dict[str, Any]:
    return rng.choice(file.tensor_entries or [{}])


def offsets(file: File, rng: random.Random) -> None:
    found = _entry(file, rng).get("data_offsets")
    if isinstance(found, list) and len(found) == 2:
        place = rng.randrange(2)
        near = found[place] + rng.choice((-8, -1, 1, 8)) if isinstance(found[place], int) else 0
        found[place] = rng.choice((near, near, len(file.data), *NUMBERS, "0", None))


def offsets_swapped(file: File, rng: random.Random) -> None:
    """Two tensors lie in each other's place: where they are of one size, only their sums tell."""
    one, other = _entry(file, rng), _entry(file, rng)
    if one is not other and "data_offsets" in one and "data_offsets" in other:
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


def shape(file: File, rng: random.Random) -> None:
    found = _entry(file, rng).get("shape")
    if isinstance(found, list) and found:
        found[rng.randrange(len(found))] = rng.choice((*NUMBERS, 3, 7, "1"))
        if rng.random() < 0.2:
            found += [2**32] * rng.choice((1, 2, 3000))


def dtype(file: File, rng: random.Random) -> None:
    _entry(file, rng)["dtype"] = rng.choice((*DTYPES, "f32", "X", "F32\n\x1b[2J", "x" * 5000, 7, None))


def field(file: File, rng: random.Random) -> None:
    """One of an entry's fields is missing, or there is another."""
    found = _entry(file, rng)
    if found and rng.random() < 0.5:
        del found[rng.choice(list(found))]
    else:
        found[rng.choice(NAMES)] = rng.choice(OTHERS)


def name(file: File, rng: random.Random) -> None:
    place = rng.randrange(len(file.entries))
    new = rng.choice((*NAMES, "\ud800", file.entries[rng.randrange(len(file.entries))][0]))
    file.entries[place] = (new, file.entries[place][1])


def entry_twice(file: File, rng: random.Random) -> None:
    first, value = rng.choice(file.entries)
    if isinstance(value, dict) and rng.random() < 0.7:
        value = {**value, **rng.choice(({"dtype": "F64"}, {"shape": [1]}, {RECORD: "{}"}, {DIGEST: ""}, {}))}
    file.entries.insert(rng.randrange(len(file.entries) + 1), (first, value))


def entry_other(file: File, rng: random.Random) -> None:
    place = rng.randrange(len(file.entries))
    file.entries[place] = (file.entries[place][0], rng.choice(OTHERS + NUMBERS))


def metadata(file: File, rng: random.Random) -> None:
    found = next((value for first, value in file.entries if first == "__metadata__"), None)
    if isinstance(found, dict):
        kind = rng.randrange(3)
        if kind == 0 and found:
            del found[rng.choice(list(found))]
        elif kind == 1:
            found[rng.choice((RECORD, DIGEST, "format"))] = rng.choice((*OTHERS, *NUMBERS))
        else:
            found["more"] = "nothing that is read"


def entries_shuffled(file: File, rng: random.Random) -> None:
    rng.shuffle(file.entries)


def bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 30))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_bytes(data: bytes, rng: random.Random) -> bytes:
    end = min(8 + int.from_bytes(data[:8], "little"), len(data))
    if end <= 8:
        return data
    where = rng.randrange(8, end)
    return data[:where] + rng.choice((b'"', b"{", b"}", b",", b"9", b"\x00", b"\xff", b"\\", b" ")) + data[where + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, 7, 8, 9, len(data) - 1, rng.randrange(len(data) + 1)))]


def appended(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"\x00", b"\n", bytes(4096), data))


def cut_out(data: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(len(data) + 1)
    return data[:where] + data[where + rng.choice((1, 8, 64)) :]


def header_length(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    sizes = (0, 1, length - 1, length + 1, len(data) - 8, len(data) - 7, 10**8, 2**31, 2**40, 2**63, 2**64 - 1)
    return max(rng.choice(sizes), 0).to_bytes(8, "little") + data[8:]


def header_space(data: bytes, rng: random.Random) -> bytes:
    """More blanks in the header: the same file."""
    length = int.from_bytes(data[:8], "little")
    blanks = rng.choice((b" ", b"\n", b"\t")) * rng.choice((8, 800))
    longer = min(length + len(blanks), 2**64 - 1)  # an earlier change may have made it as long as can be said
    return longer.to_bytes(8, "little") + data[8 : 8 + length] + blanks + data[8 + length :]


def header_deep(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    deep = rng.choice((b"[", b'{"a":')) * rng.choice((100, 100_000))
    return len(deep).to_bytes(8, "little") + deep + data[8 + length :]


HEADER_KINDS: tuple[Callable[[File, random.Random], None], ...] = (
    offsets, offsets_swapped, shape, dtype, field, name, entry_twice, entry_other, metadata, entries_shuffled,
)  # fmt: skip
BYTE_KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    bits, header_bytes, cut, appended, cut_out, header_length, header_space, header_deep,
)  # fmt: skip
