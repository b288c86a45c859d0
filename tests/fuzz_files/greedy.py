"""Files that go for memory: long headers of what takes most for its length, some that are read and some too long."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from .container import Held, Parts, bytes_of, file_of, parts_of
from .subjects import Subject, subject


def metadata_entries(parts: Parts, count: int) -> None:
    parts.metadata = {f"{number:x}": "" for number in range(count)}


def empty_tensors(parts: Parts, count: int) -> None:
    parts.tensors |= {f"{number:x}": Held("U8", [0], b"") for number in range(count)}


def empty_lists(parts: Parts, count: int) -> None:
    parts.record["more"] = [[]] * count


def objects(parts: Parts, count: int) -> None:
    parts.record["more"] = [{"a": 0}] * count


def names(parts: Parts, count: int) -> None:
    parts.record["sha256"] |= {f"{number:x}": "" for number in range(count)}


def prefixes(parts: Parts, count: int) -> None:
    parts.record["prefixes"] = [{"parent": None, "pinned": False, "states": False}] * count


def wide_text(parts: Parts, count: int) -> None:
    """One sign of four bytes makes four of each of the others."""
    parts.record["model"]["torch"] = "\U0001f600" + "x" * 8 * count


# With how many of it a header is still read: so many that twice as many would be too heavy, or nearly.
GREEDS: dict[Callable[[Parts, int], None], int] = {
    metadata_entries: 2**18,
    empty_tensors: 2**15,
    empty_lists: 2**17,
    objects: 2**17,
    names: 2**17,
    prefixes: 2**15,
    wide_text: 2**20,
}
_TOO_MANY = 3
_LONG = 2 * 10**7


def greedy(data: bytes, greed: Callable[[Parts, int], None], count: int) -> bytes:
    """A valid file made greedy."""
    parts = parts_of(data)
    greed(parts, count)
    file = file_of(parts, json.dumps(parts.record, ensure_ascii=False))
    return bytes_of(file.header(), file.data)


def chained(data: bytes, count: int) -> bytes:
    """The first prefix of a file over and over, each token behind the one before as a prefix of its own."""
    parts = parts_of(data)
    first = {name[2:]: held for name, held in parts.tensors.items() if name.startswith("0.")}
    length = first["ids"].shape[0]
    parts.record["prefixes"] = [
        {"parent": number - 1 if number else None, "pinned": True, "states": False} for number in range(count)
    ]
    parts.record["sha256"] = {}
    parts.tensors = {
        f"{number}.{name}": _token(held, number % length) for number in range(count) for name, held in first.items()
    }
    file = file_of(parts)
    return bytes_of(file.header(), file.data)


def long(data: bytes, count: int) -> bytes:
    """The first prefix of a file with so many tokens: of recurrent layers alone, whose states stay as long."""
    parts = parts_of(data)
    parts.tensors["0.ids"] = Held("I64", [count], (5).to_bytes(8, "little") * count)
    file = file_of(parts)
    return bytes_of(file.header(), file.data)


def _token(held: Held, token: int) -> Held:
    """One token of a tensor, `[n]` or `[heads, n, size]`."""
    heads, length = (1, held.shape[0]) if len(held.shape) == 1 else held.shape[:2]
    size = len(held.data) // (heads * length)
    starts = [(head * length + token) * size for head in range(heads)]
    shape = [1] if len(held.shape) == 1 else [heads, 1, *held.shape[2:]]
    return Held(held.dtype, shape, b"".join(held.data[start : start + size] for start in starts))


def files() -> Iterator[tuple[Subject, str, bytes, int]]:
    """Models and their files, with names and numbers of tokens, one by one: valid ones of many prefixes and of many
    tokens, and of each kind of header one that is read and one that is too long.
    """
    plain, recurrent = subject("llama"), subject("mamba")
    yield plain, "chained", chained(plain.data, 500), 500
    yield recurrent, "long", long(recurrent.data, _LONG), _LONG
    for greed, count in GREEDS.items():
        yield plain, greed.__name__, greedy(plain.data, greed, count), 0
        yield plain, f"{greed.__name__}, too many", greedy(plain.data, greed, _TOO_MANY * count), 0
