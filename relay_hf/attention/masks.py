"""Transformers' mask function, answered for a relayed forward: masks are recognised, not built."""

from __future__ import annotations

import math
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UnfitModelError
from ..model.attention_choice import users_implementation
from ..model.upstream.attention import registered_mask
from ..model.upstream.masks import (
    MaskRequest,
    causal_mask_function,
    makes_masks_ahead,
    masks_for_generate,
    sliding_window_mask,
)
from .context import ForwardContext, active_frame

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def relay_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask of a relayed forward: None where it is causal, a token of recognition where it has a window.

    Those that are prepared for decode steps are tokens where they are causal too: a model makes what is None again.

    No mask is built: which own columns a row may see is known to the frame, and a window is arithmetic on positions.
    Attention under any other pattern raises. The arguments are those of Transformers' own mask functions.
    """
    if torch.compiler.is_compiling():
        from . import uncompiled

        return uncompiled.mask(*args, **kwargs)
    frame = active_frame.get()
    if frame is None:
        users_mask = registered_mask(users_implementation(kwargs["config"]))
        # As Transformers has it for an implementation that registered no mask.
        return None if users_mask is None else users_mask(*args, **kwargs)
    asked = MaskRequest.of(*args, **kwargs)
    window: float | None = None
    if _same_function(asked.function, causal_mask_function):
        frame.causal, window = True, math.inf
        if not frame.preparing:
            return None
    elif asked.window is not None and _same_function(asked.function, sliding_window_mask(asked.window)):
        window = asked.window
    # 4-D like a real mask, so that a model may slice it, but one element a query in memory. Of a pattern that the
    # operator does not know it is made too: BART's kin make one for cross-attention that they don't have.
    queries = torch.ones(asked.queries, dtype=torch.bool, device=asked.device)
    frame.windows[queries.untyped_storage().data_ptr()] = (queries, window)
    return queries[None, None, :, None].expand(asked.rows, 1, asked.queries, asked.columns)


def prepare_masks(frame: ForwardContext, model: PreTrainedModel, batch: int, device: torch.device) -> Any:
    """The masks of a decode step, as generate() prepares them for a static cache; None if it would make none itself.

    A model that is given them builds none: the host is spared that, and torch.compile sees nothing it can't follow.
    """
    if not makes_masks_ahead(model, frame.cache.config):
        return None
    frame.preparing = True
    try:
        embeds = torch.empty((batch, 1, 0), dtype=model.dtype, device=device)
        return masks_for_generate(model, embeds, frame.cache)
    finally:
        frame.preparing = False


def window_of(frame: ForwardContext, mask: Tensor | None) -> int | None:
    """The sliding window (tokens) that a layer's mask stands for, None for a causal one.

    Raises:
        UnfitModelError: the mask is not one that `relay_mask` gave in this forward, or of another pattern.
    """
    if mask is None and frame.causal:
        return None
    queries, window = (
        (None, None) if mask is None else frame.windows.get(mask.untyped_storage().data_ptr(), (None, None))
    )
    # A slice has the same storage: models drop queries that need no answer, but never the last ones.
    if mask is None or queries is None or mask.storage_offset() + mask.shape[2] != len(queries):
        raise UnfitModelError("the model makes or rewrites its attention masks in its own way")
    if window is None:
        raise UnfitModelError("the model masks attention in a way that is neither causal nor a sliding window")
    return None if window == math.inf else int(window)


def _same_function(one: Any, other: Any) -> bool:
    """Whether two functions run the same code over the same captured values (Transformers composes masks so)."""
    if not (isinstance(one, FunctionType) and isinstance(other, FunctionType)):
        return type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other)
    if one.__code__ is not other.__code__:
        return False
    mine, theirs = _captured(one.__closure__), _captured(other.__closure__)
    return len(mine) == len(theirs) and all(_same_function(a, b) for a, b in zip(mine, theirs, strict=True))


def _captured(closure: tuple[CellType, ...] | None) -> list[Any]:
    values: list[Any] = []
    for cell in closure or ():
        content = cell.cell_contents
        values.extend(content if isinstance(content, tuple) else [content])
    return values
