"""The protocol between a forward and the generate() call that runs it: what the forward reports, and what it asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..cache_utils import RelayCache
    from ..errors import RelayError
    from ..model.linears import Linears
    from .context import Observations
    from .static_step import StaticStep


class ForwardListener(Protocol):
    """An object that runs forwards of one model, and knows facts about them that their arguments do not hold.

    Attributes:
        static_step: the latest forward, if it was a static decode step; else None.
        capture: a dictionary for K and V as attention sees them, by layer, in models whose cache stores something
            else; or None.
    """

    static_step: StaticStep | None
    capture: dict[int, tuple[Tensor, Tensor]] | None

    @property
    def configs(self) -> Sequence[PreTrainedConfig]:
        """The configurations whose attention implementation is switched during a forward."""

    @property
    def linears(self) -> Linears:
        """The linear layers that oneDNN computes during a forward."""

    def tokens(self, cache: RelayCache, input_ids: Tensor | None) -> None:
        """A forward of `input_ids` `[B, T]` with `cache` is about to begin."""

    def knows_masks(self, cache: RelayCache) -> bool:
        """Whether the mask of a forward with `cache` is the prompt's, with ones behind it.

        Such a mask is not read, because on a GPU a read waits for the device.
        """

    def prepare(self, step: StaticStep) -> None:
        """A new static step was made, with its masks; its forward has not begun."""

    def entered(self) -> None:
        """A static step's forward begins."""

    def computed_by(self, backend: str) -> None:
        """A forward was replayed, and `backend` computed its attention."""

    def left(self, seen: Observations, complete: bool) -> None:
        """A forward is over. `complete`: it has returned, and has not raised."""

    def may_rerun(self, cache: RelayCache) -> bool:
        """Whether a forward with `cache` that misses something is run again by stock."""

    def checked(self, cache: RelayCache, missed: RelayError | None, inputs: Mapping[str, Any]) -> Any:
        """A forward of `inputs` with `cache` has returned, and it was checked what it attended to.

        `missed`: the error that says what it did not attend to, or None.

        Returns:
            The outputs of the same forward, run again by stock; None: the forward's own outputs are right.

        Raises:
            RelayError: `missed`, if there are no other outputs.
        """


listener: ContextVar[ForwardListener | None] = ContextVar("relay_hf_listener", default=None)
