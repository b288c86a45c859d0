"""A file's header: how much it may say before it is believed, and what it says."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from ..errors import shown

# What a header takes once it is read: its text, a few times over (as UTF-8, and as Python's text of up to four bytes a
# character), and the values of its JSON; most for the least text take the entries of a dictionary, with a key each.
_OF_A_BYTE, _OF_A_VALUE = 8, 384
_ANYWAY = 2**27
_PIECE = 2**20
_DTYPES = {"I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MOST_DIMENSIONS = 64  # torch's own limit


@dataclass(frozen=True)
class Entry:
    """What a header says of a tensor.

    Attributes:
        dtype: of its elements; one that no prefix has by its name in the file.
        shape: of the tensor.
        start: bytes of the file before it.
        nbytes: bytes that it takes.
    """

    dtype: torch.dtype | str
    shape: list[int]
    start: int
    nbytes: int


def header_of(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The metadata of a safetensors file, and its tensors by name, in their order in the file.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no such file, has a header that is too heavy, or one that does not go with its size.
    """
    if too_heavy(file):
        raise ValueError("a header that takes far more than its tensors")
    size, length = _sizes(file)
    text = file.read(length).decode()
    try:
        header = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("a header that is too deep") from None
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("metadata that are no object")
    entries = {name: _entry(name, value, 8 + length) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    end = 8 + length
    for name, entry in ordered.items():  # no byte is of two tensors, or of none
        if entry.start != end:
            raise ValueError(f"{shown(name)} starts at byte {shown(entry.start)}, and not at {end}")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"{size} bytes, and tensors up to {shown(end)}")
    return metadata, ordered


def too_heavy(file: BinaryIO) -> bool:
    """Whether the header of a safetensors file takes far more memory than its tensors: 128 MiB more.

    Raises:
        OSError: the file can't be read.
        ValueError: it has no header.
    """
    size, length = _sizes(file)
    # Commas and what opens a list or an object bound the number of values; those within text count too.
    values = sum(piece.count(sign) for piece in _pieces(file, length) for sign in (b",", b"[", b"{"))
    return _OF_A_BYTE * length + _OF_A_VALUE * values > _ANYWAY + size - 8 - length


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `json.loads`: a name that it has twice is a ValueError, since readers differ on it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _entry(name: str, found: Any, data: int) -> Entry:
    """What a header says of a tensor, where the tensors begin behind `data` bytes."""
    try:
        dtype, shape, (start, end) = found["dtype"], found["shape"], found["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{shown(name)} lacks its dtype, shape or offsets") from None
    numbers = [start, end, *shape] if isinstance(shape, list) else []
    counts = bool(numbers) and all(type(number) is int and number >= 0 for number in numbers)
    if not counts or start > end or not isinstance(dtype, str):
        raise ValueError(f"{shown(name)} is {shown(dtype)} {shown(shape)} at {shown([start, end])}")
    entry = Entry(_DTYPES.get(dtype, dtype), shape, data + start, end - start)
    if isinstance(entry.dtype, torch.dtype):
        small = len(shape) <= _MOST_DIMENSIONS  # the product of many takes long
        if not small or math.prod(shape) * entry.dtype.itemsize != entry.nbytes:
            raise ValueError(f"{shown(name)} is {dtype} {shown(shape)} of {shown(entry.nbytes)} bytes")
    return entry


def _sizes(file: BinaryIO) -> tuple[int, int]:
    """Bytes of a file, and of its header, which is what is read next."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= size - 8:
        raise ValueError(f"{size} bytes, and a header of {length}")
    return size, length


def _pieces(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (piece := file.read(min(length, _PIECE))):
        length -= len(piece)
        yield piece
