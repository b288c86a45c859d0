"""Around a model's forward: opening and closing the frame of one that runs with a RelayCache."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..cache_utils import RelayCache, RelayLayer, StateLayer
from ..errors import RECHOSEN, RelayError, UnfitModelError
from ..model.attention_choice import deselect, select
from ..model.device import on_host
from .context import ForwardContext, active_frame
from .split_tensor import Columns, SplitTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedConfig

    from .static_step import StaticStep


def forward_arguments(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[RelayCache | None, Tensor | None, Tensor | None]:
    """The RelayCache, attention mask and token ids of a forward's arguments, whether given by name or by position."""
    cache = next((given for given in (*kwargs.values(), *args) if isinstance(given, RelayCache)), None)
    if cache is not None and args:
        kwargs = inspect.signature(forward).bind_partial(*args, **kwargs).arguments
    return cache, kwargs.get("attention_mask"), kwargs.get("input_ids")


def open_frame(
    cache: RelayCache,
    owner: object,
    configs: Sequence[PreTrainedConfig],
    backend: str,
    own_mask: Tensor | None,
    decoding: StaticStep | None = None,
    capture: dict[int, tuple[Tensor, Tensor]] | None = None,
) -> ForwardContext:
    """Enter a relayed forward: the configs name our attention, and every layer finds the frame.

    Where the cache joins shared and own KV for the model, attention stays the user's.
    """
    if cache.rows.parted:
        configs = ()
    plans, windows, causal = {}, {}, False
    if decoding is not None:
        plans, windows, causal = {1: decoding.plan}, dict(decoding.windows), decoding.causal
    frame = ForwardContext(
        cache,
        owner,
        configs,
        active_frame.get(),
        _parts_of(cache),
        backend,
        own_mask,
        decoding,
        capture,
        causal=causal,
        windows=windows,
        plans=plans,
    )
    active_frame.set(frame)  # first: what follows is undone where the frame is closed, wherever an interrupt comes
    cache.in_static_step = decoding is not None
    select(configs, frame)
    return frame


def _parts_of(cache: RelayCache) -> Callable[[RelayLayer], tuple[Tensor, Tensor]]:
    """What gives a layer's keys and values of whole rows, in parts; one per forward, for its masks."""
    rows, columns = cache.rows, None

    def parts(layer: RelayLayer) -> tuple[Tensor, Tensor]:
        nonlocal columns
        keys, values = layer.own()
        if len(layer.shared) != 1 or layer.shared[0].segment.rows is not None:
            return layer.joined(0), layer.joined(1)
        (shared_length,) = rows.shared_lengths  # models that need this share one run among all rows, or none
        columns = columns or Columns(len(keys), rows.offset, shared_length, rows.own_start)
        shared = [part[None] for part in layer.shared[0].stored]
        return SplitTensor(shared[0], keys, 2, columns), SplitTensor(shared[1], values, 2, columns)

    return parts


def close_frame(frame: ForwardContext) -> None:
    """Leave a relayed forward, and any inside it that an interrupt left open."""
    inner = active_frame.get()
    while inner is not None:
        deselect(inner.configs, inner)
        inner.cache.in_static_step = False
        active_frame.set(inner.outer)
        if inner is frame:
            return
        inner = inner.outer


def check_hits(frame: ForwardContext) -> None:
    """Raise unless every layer that holds anything of the rows was served from the cache in this forward."""
    cache = frame.cache
    # A layer with both need not use both; any other that stores nothing mixes tokens in a way that the cache can't see.
    holding = {i for i, layer in cache.kv_layers.items() if layer.is_initialized or not isinstance(layer, StateLayer)}
    attended = frame.updates if cache.rows.parted else frame.hits
    if not cache.rows.parted:
        holding |= cache.reusing
    if not holding and not any(layer.holds_state for layer in cache.state_layers.values()):
        raise UnfitModelError("the model does not use the cache that it is given")
    if missed := sorted(holding - attended):
        if frame.rechosen:
            raise RelayError(RECHOSEN)
        what = f"layers {missed} did not"
        raise UnfitModelError(f"not all attention goes through Transformers' attention interface: {what}")


def own_columns(cache: RelayCache, attention_mask: Tensor | None) -> Tensor | None:
    """The own columns that may be attended to, from the caller's mask; None where only left padding is masked.

    Args:
        cache: the cache, its layout set.
        attention_mask: `[B, n]` over the caller's columns, those of the coming forward included; or None.

    Returns:
        `[B, n - offset]` bool, where the mask is, or None.

    Raises:
        RelayError: the mask hides a token of the shared prefix, shows padding that was hidden before, or is of other
            rows.
    """
    rows = cache.rows
    if attention_mask is None:
        if rows.padded:
            raise RelayError("the rows of this RelayCache are padded: attention_mask is needed")
        return None
    if attention_mask.dim() != 2:
        raise RelayError(
            f"attention_mask must be [rows, columns]; got {attention_mask.dim()} dimensions. For a mask of your "
            "own pass what the cache's to_dynamic() returns."
        )
    attended = on_host(attention_mask)
    if rows.own_start is not None and len(attended) != len(rows.own_start):
        raise RelayError(f"attention_mask has {len(attended)} rows, and this RelayCache {len(rows.own_start)}")
    columns = np.arange(attended.shape[1])
    own_start = 0 if rows.own_start is None else rows.own_start.cpu().numpy()[:, None]
    prefix_end = rows.offset + own_start
    before_own = columns < prefix_end
    in_prefix = before_own & (columns >= prefix_end - np.array(rows.shared_lengths)[:, None])
    if ((attended & before_own) != in_prefix).any():
        raise RelayError("attention_mask differs from the padding that this RelayCache was filled with")
    if (attended | before_own).all():
        return None
    return torch.from_numpy(attended[:, rows.offset :]).to(attention_mask.device)
