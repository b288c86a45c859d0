"""The linear layers of a model that oneDNN computes in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

_FORBIDDEN = "autocast, a mode, or a setting of PyTorch's is on that the operator does not know"


@dataclass(eq=False)
class Linears:
    """The linear layers that are computed by oneDNN in a call.

    Attributes:
        modules: the layers; empty for none.
        sizes: the number of weights of each.
        why_not: why there are none, in words; empty if there are some.
        least_work: fewest multiplications of a product for which the operator is used.
        speedup: how many times as fast as PyTorch's own the operator is, at least; 1.0 if that is not known.
        used: the layers were computed so in a forward.
    """

    modules: Sequence[nn.Module] = ()
    sizes: Sequence[int] = ()
    why_not: str = ""
    least_work: int = 0
    speedup: float = 1.0
    used: bool = False

    @property
    def outcome(self) -> tuple[str, str]:
        """What computed linear layers, and why it was not oneDNN: see `RelayReport.linears`."""
        return ("onednn", "") if self.used else ("pytorch", self.why_not or _FORBIDDEN)

    def speedup_of(self, rows: int, parameters: int) -> float:
        """How many times as fast a forward of `rows` tokens multiplies, in a model of so many weights."""
        large = sum(size for size in self.sizes if size * rows >= self.least_work)
        share = min(large / max(parameters, 1), 1.0)
        return 1 / (1 - share + share / self.speedup)
