"""The mask function that Transformers calls in a relayed forward: it recognises masks, and builds none."""

from __future__ import annotations

import math
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor

from ..model.attention_choice import users_implementation
from ..model.upstream.attention import registered_mask
from ..model.upstream.masks import (
    MaskRequest,
    causal_mask_function,
    makes_masks_ahead,
    masks_for_generate,
    sliding_window_mask,
)
from .context import ForwardContext, active_context


def relay_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask of a relayed forward: None if it is causal, a small one of the registry if it has a window.

    No mask is built. The forward's context knows which own columns a row may see, and a window is arithmetic on
    positions. Attention under any other pattern raises. The arguments are those of Transformers' own mask functions.

    Masks that are prepared ahead for decode steps are never None, because a model that gets None makes its own mask.
    """
    if torch.compiler.is_dynamo_compiling():
        from ..model import uncompiled

        return uncompiled.call(_relay_mask, args, kwargs)
    return _relay_mask(args, kwargs)


def _relay_mask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    context = active_context()
    if context is None:
        users_mask = registered_mask(users_implementation(kwargs["config"]))
        # Transformers gives no mask either, if an implementation has registered no function for it.
        return None if users_mask is None else users_mask(*args, **kwargs)
    asked, masks = MaskRequest.of(*args, **kwargs), context.masks
    window: float | None = None
    if _same_function(asked.function, causal_mask_function):
        masks.causal, window = True, math.inf
        if not masks.preparing:
            return None
    elif asked.window is not None and _same_function(asked.function, sliding_window_mask(asked.window)):
        window = asked.window
    # A mask of an unknown pattern is handed out too: BART and its relatives make one for cross-attention that a decoder
    # alone does not run.
    return masks.hand_out(asked.rows, asked.queries, asked.columns, window, asked.device)


def prepare_masks(context: ForwardContext, batch: int, device: torch.device) -> Any:
    """The masks of a decode step, as generate() prepares them for a static cache; None for a model that gets none.

    A model that gets masks builds none. This saves host time, and torch.compile meets no code that it can't follow.
    """
    model, cache = context.settings.model, context.cache
    if not makes_masks_ahead(model, cache.config):
        return None
    context.masks.preparing = True
    try:
        embeds = torch.empty((batch, 1, 0), dtype=model.dtype, device=device)
        return masks_for_generate(model, embeds, cache)
    finally:
        context.masks.preparing = False


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
