"""What is given as a model or a tokenizer, judged before Transformers takes the path of no folder for a Hub id."""

from __future__ import annotations

import re
from pathlib import Path

from . import models

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_name(name: str | None, argument: str = "--model") -> None:
    """Refuse what is neither a folder nor can be a Hub id; None: nothing was given.

    Raises:
        typer.BadParameter: it is neither.
    """
    if name is None or Path(name).is_dir() or _HUB_ID.fullmatch(name):
        return
    with models.named(argument):
        raise ValueError(f"{name} is no folder" if Path(name).exists() else f"there is no folder {name}")
