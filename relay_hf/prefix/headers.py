"""What is made of a file's header before it is believed: how much it may say, and how an error shows what it says."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# What a header takes once it is read: its text, a few times over (as UTF-8, and as Python's text of up to four bytes a
# character), and the values of its JSON; most for the least text take the entries of a dictionary, with a key each.
_OF_A_BYTE, _OF_A_VALUE = 8, 384
_ANYWAY = 2**27
_PIECE = 2**20

_short = reprlib.Repr()  # neither long nor deep, however long and deep the value is
_short.maxstring = _short.maxother = 60


def too_heavy(path: Path) -> bool:
    """Whether the header of a safetensors file takes far more memory than its tensors: 128 MiB more.

    Raises:
        OSError: the file can't be read.
        ValueError: it has no header.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError(f"{size} bytes, and a header of {length}")
        # Commas and what opens a list or an object bound the number of values; those within text count too.
        values = sum(piece.count(sign) for piece in _pieces(file, length) for sign in (b",", b"[", b"{"))
    return _OF_A_BYTE * length + _OF_A_VALUE * values > _ANYWAY + size - 8 - length


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `json.loads`: a name that it has twice is a ValueError, since readers differ on it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def shown(value: object) -> str:
    """What came from a file, for an error: short, whatever it is."""
    return _short.repr(value)


def on_a_line(text: str) -> str:
    """The same, with what can't be printed escaped, and cut if it is long."""
    text = text if len(text) <= 500 else f"{text[:497]}..."
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _pieces(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (piece := file.read(min(length, _PIECE))):
        length -= len(piece)
        yield piece
