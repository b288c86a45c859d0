"""A case: a model type, and a chain of changes to its file, drawn from one integer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from . import damaged, elsewhere, forged
from .container import bytes_of, file_of, parts_of
from .subjects import TYPES


@dataclass(frozen=True)
class Case:
    """What is loaded.

    Attributes:
        number: the integer that it is drawn from.
        model_type: of the model.
        bystander: whether the store holds a prefix before.
        kinds: the names of the changes, in their order; those of one stage follow those of the one before.
        seed: of what they change.
    """

    number: int
    model_type: str
    bystander: bool
    kinds: tuple[str, ...]
    seed: int

    @property
    def forged(self) -> bool:
        """Whether sums were made anew: then what the file holds may be something else."""
        return any(kind.startswith("forged.") for kind in self.kinds)

    @property
    def reproducer(self) -> str:
        """The line that runs it again."""
        return f"python -m tests.fuzz_files --case {self.number}"

    def write(self, path: Path, data: bytes) -> None:
        """Put what comes of the changes to a valid file at a path where nothing is."""
        rng, mine = random.Random(self.seed), self._stages()
        if mine["elsewhere"]:
            elsewhere.KINDS[mine["elsewhere"][0]](path, data, rng)
            return
        if mine["forged"] or mine["header"]:
            parts, record = parts_of(data), None
            for place in mine["forged"]:
                record = forged.KINDS[place](parts, rng)
            file = file_of(parts, record, sums=rng.random() < 0.8)
            for place in mine["header"]:
                damaged.HEADER_KINDS[place](file, rng)
            data = bytes_of(file.header(), file.data)
        for place in mine["bytes"]:
            data = damaged.BYTE_KINDS[place](data, rng)
        path.write_bytes(data)

    def _stages(self) -> dict[str, list[int]]:
        stages: dict[str, list[int]] = {stage: [] for stage in STAGES}
        for kind in self.kinds:
            stage, _, name = kind.partition(".")
            stages[stage].append([each.__name__ for each in STAGES[stage]].index(name))
        return stages


STAGES = {
    "forged": forged.KINDS,
    "header": damaged.HEADER_KINDS,
    "bytes": damaged.BYTE_KINDS,
    "elsewhere": elsewhere.KINDS,
}
KINDS = tuple(f"{stage}.{kind.__name__}" for stage, kinds in STAGES.items() for kind in kinds)
# How many changes of forged, header and bytes a case has; most have one, which the next can't hide.
_CHAINS = ((1, 0, 0), (1, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (0, 1, 0), (0, 1, 0), (0, 2, 0), (0, 0, 1), (0, 0, 1),
           (0, 0, 3), (1, 1, 0), (1, 0, 1), (0, 1, 1))  # fmt: skip


def draw(number: int) -> Case:
    """The case of a number."""
    rng = random.Random(f"file {number}")
    kinds: tuple[str, ...] = ()
    if rng.random() < 0.08:
        kinds = (f"elsewhere.{rng.choice(elsewhere.KINDS).__name__}",)
    else:
        for stage, count in zip(("forged", "header", "bytes"), rng.choice(_CHAINS), strict=True):
            kinds += tuple(f"{stage}.{rng.choice(STAGES[stage]).__name__}" for _ in range(count))
    return Case(number, rng.choice(TYPES), rng.random() < 0.5, kinds, rng.randrange(2**32))
