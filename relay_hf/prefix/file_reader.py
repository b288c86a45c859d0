"""A reader of a safetensors file: `safe_open` judges the header; plain reads copy the tensors, or they are mapped.

If the file is cut short meanwhile, a plain read raises an error, and a read of a mapping ends the process by a signal.
All tensors come from one open file, even if another file replaces it at its path.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import shown

# The memory that a header takes once it is read: its text, a few times (as UTF-8, and as Python's text of up to four
# bytes a character), and the values of its JSON. Entries of a dictionary take most memory for the least text.
_OF_A_BYTE, _OF_A_VALUE = 8, 384
_ANYWAY = 2**27
_DTYPES = {"I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Entry(NamedTuple):
    """A tensor's entry in a header: its shape and its dtype. A dtype that no prefix has is the name in the file."""

    dtype: torch.dtype | str
    shape: list[int]


class TensorFile:
    """A safetensors file, open until it is closed.

    Args:
        path: path of the file.

    Attributes:
        metadata: the header's metadata.
        entries: the header's entry for each tensor, by name, in their order in the file.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no safetensors file, or its header takes too much memory, is no JSON, or has a name twice.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        try:
            parsed(header_of(self._file))  # `safe_open` accepts a repeated name, and any header up to 100 MB
            self._start = self._file.tell()
            with safe_open(_reopened(self._file, path), "pt", backend="pread") as judged:
                self.metadata: dict[str, str] = judged.metadata() or {}
                self.entries = {name: _entry(judged.get_slice(name)) for name in judged.offset_keys()}
        except SafetensorError as error:
            size = os.fstat(self._file.fileno()).st_size
            self.close()
            raise ValueError(f"{error}; it has {size} bytes") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. Tensors that are mapped stay."""
        self._file.close()

    def tensors(self, mapped: bool) -> Iterator[tuple[str, Tensor]]:
        """Its tensors with their names, in their order in the file. Each must have a dtype that prefixes have.

        Args:
            mapped: map them to the file, privately, so that a write to a tensor does not change it. False: copy them.

        Raises:
            OSError: the file can't be read.
            ValueError: it has been cut short.
        """
        mapping = None
        if mapped:
            pages = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            mapping = torch.frombuffer(pages, dtype=torch.uint8)
        end = self._file.seek(self._start)
        for name, entry in self.entries.items():  # without gaps between them: `safe_open` has checked
            dtype = cast(torch.dtype, entry.dtype)
            start, end = end, end + math.prod(entry.shape) * dtype.itemsize
            data = self._next(end - start) if mapping is None else mapping[start:end]
            if len(data) < end - start:
                raise ValueError(f"{shown(name)} ends behind the file's end")
            if data.data_ptr() % dtype.itemsize:
                data = data.clone()  # its address is not a multiple of its elements' size
            yield name, data.view(dtype).view(entry.shape)

    def _next(self, count: int) -> Tensor:
        """The next `count` bytes of the file, or all that are left."""
        data, read = np.empty(count, np.uint8), 0
        while more := self._file.readinto(data.data[read:]):
            read += more
        return torch.from_numpy(data[:read])


def header_of(file: BinaryIO) -> str:
    """The text of a header that takes at most 128 MiB more memory than the tensors behind it.

    Raises:
        OSError: the file can't be read.
        ValueError: it has no such header.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= size - 8:
        raise ValueError(f"it has {size} bytes, and its start speaks of a header of {length}")
    room = _ANYWAY + size - 8 - length - _OF_A_BYTE * length
    text = file.read(length) if room >= 0 else b""
    # There are no more values than commas and opening brackets. Those inside of text are counted too.
    if _OF_A_VALUE * sum(text.count(sign) for sign in (b",", b"[", b"{")) > room:
        raise ValueError("a header that takes far more than its tensors")
    return text.decode()


def parsed(text: str) -> Any:
    """The value of a JSON text. No object in it may have a name twice, because readers differ in which one they take.

    Raises:
        ValueError: it is no JSON, is too deep, or has a name twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("JSON that is too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _reopened(file: BinaryIO, path: Path) -> Path:
    """A path by which an open file can be opened again, even if another file is at its own path by now.

    Windows has no such path, but there no file can replace an open one. On another system without such a path, the
    header may be that of the other file. Then the tensors do not have the header's SHA-256, and are refused.
    """
    own = Path(f"/dev/fd/{file.fileno()}")
    return own if own.exists() else path


def _entry(found: Any) -> Entry:
    dtype = found.get_dtype()
    return Entry(_DTYPES.get(dtype, dtype), found.get_shape())
