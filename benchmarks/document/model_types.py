"""How many model types are relayed: counted in the table of docs/models.md, each row of which a test holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
_ROW = re.compile(r"^\| [\w-]+ \| ([^|:]+)", re.MULTILINE)
_OWN_CODE = ", own attention code"


@dataclass(frozen=True)
class ModelTypes:
    """Of Transformers' causal language model types: how many become what.

    Attributes:
        attention: are relayed, and have attention alone.
        state_shared: are relayed, and have recurrent layers.
        untouched: run as stock does.
        untried: can't be built from their configuration alone.
    """

    attention: int
    state_shared: int
    untouched: int
    untried: int

    @classmethod
    def of(cls, statuses: Iterable[str]) -> ModelTypes:
        """From what the table says of each type, up to a colon."""
        found = [status.strip().removesuffix(_OWN_CODE) for status in statuses]
        return cls(*(found.count(status) for status in ("relayed", "state shared", "untouched", "not tried")))

    @property
    def relayed(self) -> int:
        """With and without recurrent layers."""
        return self.attention + self.state_shared

    @property
    def tried(self) -> int:
        """All that were built and called."""
        return self.relayed + self.untouched

    @property
    def all(self) -> int:
        """All that Transformers has."""
        return self.tried + self.untried

    def __str__(self) -> str:
        """Two sentences, as docs/models.md has them above its table."""
        return (
            f"Of {self.all} causal model types {self.relayed} are relayed: {self.attention} that have attention alone, "
            f"and {self.state_shared} whose state is shared. {self.untouched} run as stock does, and {self.untried} "
            "were not tried."
        )


def counted() -> ModelTypes:
    """What the first table of the page says."""
    table = PAGE.read_text(encoding="utf-8").partition("\n## ")[0].partition("|---|")[2]
    return ModelTypes.of(_ROW.findall(table))
