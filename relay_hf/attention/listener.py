"""Who is told of a model's forwards, and says what their arguments do not: a generate() call, for one."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..cache_utils import RelayCache
    from .context import Observations
    from .static_step import StaticStep


class ForwardListener(Protocol):
    """Runs forwards of one model, and knows more of them than their arguments say.

    Attributes:
        static_step: the latest forward, if it was a static decode step.
        capture: where layers leave K and V as their attention sees them, by layer, if the cache stores something else;
            or None.
    """

    static_step: StaticStep | None
    capture: dict[int, tuple[Tensor, Tensor]] | None

    @property
    def configs(self) -> Sequence[PreTrainedConfig]:
        """The configurations whose attention implementation is switched during a forward."""

    def tokens(self, cache: RelayCache, input_ids: Tensor | None) -> None:
        """A forward of `input_ids` `[B, T]` with `cache` is about to begin."""

    def knows_masks(self, cache: RelayCache) -> bool:
        """Whether the mask of a forward with `cache` is the prompt's, with ones behind it: then it is not read.

        On a GPU, to read a mask would be to wait for the device.
        """

    def prepare(self, step: StaticStep) -> None:
        """A static step was made anew, its masks too; its forward has not begun."""

    def entered(self) -> None:
        """A static step's forward begins."""

    def computed_by(self, backend: str) -> None:
        """A forward was replayed whose attention a backend computes."""

    def left(self, seen: Observations) -> None:
        """A forward is over."""


listener: ContextVar[ForwardListener | None] = ContextVar("relay_hf_listener", default=None)
