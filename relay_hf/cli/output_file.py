"""A file that a command writes its result to: judged before anything is measured, written at once at the end."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR, S_ISREG

_EFFECTIVE = os.access in os.supports_effective_ids


def check_writable(path: Path) -> None:
    """Find out whether a file can be written. Nothing is left behind, and no folder is made.

    Raises:
        OSError: it can't be; the error has the number, the reason and the path.
    """
    mode = _mode(path)
    if mode is not None and S_ISDIR(mode):
        raise _error(errno.EISDIR, path)
    if mode is not None and not os.access(path, os.W_OK, effective_ids=_EFFECTIVE):
        raise _error(errno.EACCES, path)
    if mode is None or S_ISREG(mode):
        folder = path.resolve().parent
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:  # it names a file of no interest
            raise _error(error.errno or errno.EIO, folder) from None


def write_output(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by a function that is given a path. After an error or an interrupt an old file is as it was.

    Raises:
        OSError: the file can't be written.
    """
    from relay_hf.prefix.file_replace import replacing

    mode = _mode(path)
    if mode is not None and not S_ISREG(mode):  # such as /dev/stdout, which nothing can replace
        write(path)
        return
    with replacing(path) as beside:
        write(beside)


def _mode(path: Path) -> int | None:
    """The mode of what lies at a path; None: nothing does."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
