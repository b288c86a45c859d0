"""Replaces a file at once and as a whole, so that nobody reads half of it, and an error leaves the old one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within it, a path beside `path` to write to. At its end what was written there takes the place of the old file.

    The old file's permissions stay, and a link still leads to the new file. After an error nothing is left beside it.

    Raises:
        OSError: the file can't be written; an old file is unchanged.
    """
    path = path.resolve()  # so that a link still leads to the new file
    beside = path.with_name(f".{uuid4().hex}.tmp")  # a name that is never too long
    try:
        beside.touch()
        mode = (path if path.exists() else beside).stat().st_mode
        yield beside
        beside.chmod(mode & 0o777)  # safetensors gives permissions to the owner alone
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
