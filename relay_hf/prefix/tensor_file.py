"""A safetensors file that is opened once and read at the offsets of its header.

Plain reads, unlike a mapping, make an error of a file that is cut short meanwhile, and not a signal that ends the
process; and of a file that takes another's place they see nothing.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from threading import Lock
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..errors import printable, shown
from .headers import Entry, header_of


def is_there(path: Path) -> bool:
    """Whether a file lies at a path; False where nothing does.

    Raises:
        OSError: it is something else than a file, or can't be looked at.
        ValueError: no path has such a name.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise ValueError(f"path must be that of a file; {printable(path)} can't be one ({error}).") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        what = "a link that leads in a circle; remove it, or give the path of the file itself"
        raise OSError(errno.ELOOP, what, str(path)) from None
    if not S_ISREG(mode):
        kind = IsADirectoryError if S_ISDIR(mode) else OSError
        raise kind(f"path must be that of a file; {printable(path)} is none.")
    return True


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError of what is read here names the file: one of an open file does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


class TensorFile:
    """A safetensors file, open until it is closed.

    Args:
        path: of the file.

    Attributes:
        metadata: what the header says beside the tensors.
        entries: what it says of each tensor, by name, in their order in the file.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no safetensors file, or has a header that takes far more than its tensors.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = Lock()
        try:
            self.metadata, self.entries = header_of(self._file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; what is mapped stays."""
        self._file.close()

    def read(self, name: str) -> Tensor:
        """A tensor of a dtype that is known, copied out of the file.

        Raises:
            OSError: the file can't be read.
            ValueError: it has been cut short.
        """
        entry = self.entries[name]
        data = np.empty(entry.nbytes, np.uint8)
        left = data.data
        with self._lock:  # one after the other, as they lie in the file
            self._file.seek(entry.start)
            while left and (count := self._file.readinto(left)):
                left = left[count:]
        if left:
            raise ValueError(f"{shown(name)} ends behind the file's end")
        return _as(torch.from_numpy(data), entry)

    def mapped(self) -> dict[str, Tensor]:
        """All tensors, mapped to the file: none of it is read yet.

        Raises:
            OSError: the file can't be mapped.
            ValueError: it has been cut short.
        """
        end = max((each.start + each.nbytes for each in self.entries.values()), default=0)
        # Private, so that nothing gets from a tensor into the file.
        mapping = mmap.mmap(self._file.fileno(), end, access=mmap.ACCESS_COPY)
        data = torch.frombuffer(mapping, dtype=torch.uint8)
        return {name: _as(data.narrow(0, each.start, each.nbytes), each) for name, each in self.entries.items()}


def _as(data: Tensor, entry: Entry) -> Tensor:
    """Bytes as the tensor that they are; copied where they lie between its elements' places in memory."""
    dtype = cast(torch.dtype, entry.dtype)
    if data.data_ptr() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype).view(entry.shape)
