"""The masks that a relayed forward has handed to its model: small tensors that tell which window a layer has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UnfitModelError


@dataclass(eq=False)
class MaskRegistry:
    """The window that each mask of a forward stands for.

    Attributes:
        causal: the model has asked for a plain causal mask, and got None.
        preparing: masks are being made ahead for decode steps, so causal ones are handed out too.
        windows: the masks that were handed out, by the address of their memory, with their sliding window (tokens;
            infinity for a causal mask), or None for a pattern that attention can't follow.
    """

    causal: bool = False
    preparing: bool = False
    windows: dict[int, tuple[Tensor, float | None]] = field(default_factory=dict)

    def copy(self) -> MaskRegistry:
        """A registry of the same masks, for another forward."""
        return MaskRegistry(self.causal, windows=dict(self.windows))

    def hand_out(
        self, rows: int, queries: int, columns: int, window: float | None, device: torch.device | str
    ) -> Tensor:
        """A mask `[rows, 1, queries, columns]` that stands for `window`.

        It is 4-D like a real mask, so that a model may slice it, but holds one element a query in memory.
        """
        elements = torch.ones(queries, dtype=torch.bool, device=device)
        self.windows[elements.untyped_storage().data_ptr()] = (elements, window)
        return elements[None, None, :, None].expand(rows, 1, queries, columns)

    def window_of(self, mask: Tensor | None) -> int | None:
        """The sliding window (tokens) that a layer's mask stands for; None for a causal one.

        Raises:
            UnfitModelError: the mask was not handed out in this forward, or attention can't follow its pattern.
        """
        if mask is None and self.causal:
            return None
        elements, window = (
            (None, None) if mask is None else self.windows.get(mask.untyped_storage().data_ptr(), (None, None))
        )
        # A slice has the same storage. Models cut off queries whose logits nobody needs, but never the last ones.
        if mask is None or elements is None or mask.storage_offset() + mask.shape[2] != len(elements):
            raise UnfitModelError("the model makes or rewrites its attention masks in its own way")
        if window is None:
            raise UnfitModelError("the model masks attention in a way that is neither causal nor a sliding window")
        return None if window == math.inf else int(window)
