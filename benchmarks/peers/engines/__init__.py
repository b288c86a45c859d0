"""The engines: a module each, which is imported in the engine's own environment alone.

Each has a function `load(setup)`, which returns an `Engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..jobs import Job

Answer = Callable[[], list[list[int]]]  # the call to be timed; its new tokens, `[rows][new]`


@dataclass(frozen=True)
class Setup:
    """What an engine is loaded with.

    Attributes:
        folder: where `weights.safetensors` is, in float32 by Transformers' names, and where the engine may write.
        shape: the fields of the `ModelShape`.
        threads: that compute.
        rows: the most rows that a job will have.
        cells: the most tokens whose KV a job stores once each.
        options: the contender's own.
    """

    folder: str
    shape: dict[str, int]
    threads: int
    rows: int
    cells: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return Path(self.folder) / "weights.safetensors"

    def made(self, name: str, write: Callable[[Path], None]) -> Path:
        """The file or folder of that name, which is written unless another engine has written it."""
        path = Path(self.folder) / name
        if not path.exists():
            partial = path.with_name(f"partial-{name}")
            write(partial)
            partial.rename(path)
        return path


class Engine(Protocol):
    """A model that is loaded, and ready for jobs."""

    def about(self) -> dict[str, Any]:
        """Versions, instruction sets and settings, for the record."""
        ...

    def prepare(self, job: Job, before: Job | None) -> Answer:
        """Do the untimed part, and return the call to be timed.

        Args:
            job: what is to be answered.
            before: a call with the same prefix and other own tokens, after which the prefix is kept; None: nothing is.
        """
        ...
