"""The start and the end of every forward of a patched model: a forward that is given a RelayCache is relayed.

The model's forward hooks call `enter` and `leave`. They do nothing in a forward without a RelayCache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..cache_utils import RelayCache, StateLayer
from ..cache_utils.columns import own_columns
from ..errors import RECHOSEN, RelayError, UnfitModelError
from ..model.attention_choice import attention_configs, chosen_since, users_implementation
from .context import ForwardContext, ForwardSettings, active_context, close_context, open_context
from .listener import ForwardListener, listener
from .masks import prepare_masks
from .static_step import static_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def enter(model: PreTrainedModel, backend: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments | None:
    """Open the context of a forward that is given a RelayCache.

    Returns:
        New arguments for the forward, positional and by name: a static decode step gets no mask, or prepared masks.
        None if the arguments stay; so they do for a cache that was joined, on which stock's forward goes on.

    Raises:
        RelayError: the forward asks for attention weights, or its mask does not fit the cache.
    """
    stale = active_context()
    if stale is not None and stale.settings.model is model:
        close_context(stale)
    cache, mask, ids = forward_arguments(model.forward, args, kwargs)
    if cache is not None:
        cache.take_over()
    if cache is None or cache.is_joined:
        return None
    told = listener.get()
    if told is not None:
        told.tokens(cache, ids)
    if told is not None and told.knows_masks(cache):
        return _enter_known(model, backend, told, cache, ids, (args, kwargs))
    configs = attention_configs(model.modules()) if told is None else told.configs
    if cache.rows.whole_rows:
        configs = ()  # the cache hands the model's own code whole rows
    elif kwargs.get("output_attentions") and "eager" in map(users_implementation, configs):
        raise RelayError(
            "output_attentions=True: attention over a RelayCache has no weights to return. Pass what its "
            "to_dynamic() returns, or leave output_attentions out."
        )
    reruns = told is not None and told.may_rerun(cache)
    own_mask = own_columns(cache.rows, mask)
    settings = ForwardSettings(cache, model, configs, backend, own_mask, inputs=kwargs, may_rerun=reruns)
    open_context(settings if told is None else replace(settings, linears=told.linears))
    return None


def _enter_known(
    model: PreTrainedModel,
    backend: str,
    told: ForwardListener,
    cache: RelayCache,
    ids: Tensor | None,
    arguments: _Arguments,
) -> _Arguments | None:
    """`enter` of a forward whose mask is known and need not be read; it may be a static decode step."""
    args, kwargs = arguments
    by_name = kwargs if len(args) < 2 else {}  # the second positional argument is the mask
    before, step = told.static_step, static_step(cache, told.static_step, ids, by_name)
    told.static_step = step
    configs = () if cache.rows.whole_rows else told.configs
    reruns = told.may_rerun(cache)
    settings = ForwardSettings(
        cache, model, configs, backend, cache.rows.holes, step, told.capture, kwargs, reruns, told.linears
    )
    context = open_context(settings)
    if step is None:
        return None
    if step is not before:
        # The masks of this step and of all later ones.
        step.given_masks = prepare_masks(context, len(step.own_length), step.own_length.device)
        step.masks = context.masks.copy()
        told.prepare(step)
    told.entered()
    unmasked = step.given_masks is None and kwargs.get("attention_mask") is None
    return None if unmasked else (args, {**kwargs, "attention_mask": step.given_masks})


def leave(model: PreTrainedModel, complete: bool) -> Any:
    """Close the context of a forward, and check that every layer attended to its shared prefix.

    `complete`: the forward has returned, and has not raised.

    Returns:
        Outputs in place of the forward's own, which missed something; None if the forward's own are right.

    Raises:
        RelayError: it missed something, and there are no other outputs.
    """
    context = active_context()
    if context is None or context.settings.model is not model:
        return None
    seen, cache, told = context.seen, context.cache, listener.get()
    seen.rechosen = chosen_since(context.settings.configs, context)
    close_context(context)
    if told is not None:
        told.left(seen, complete)
    if not complete:
        return None
    missed = missed_by(context)
    if missed is None:
        cache.attends_stored = bool(seen.attended) and seen.attends_stored
        cache.traceable = cache.attends_stored and seen.names_layers
    elif told is None:
        raise missed
    return None if told is None else told.checked(cache, missed, context.settings.inputs)


def forward_arguments(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[RelayCache | None, Tensor | None, Tensor | None]:
    """The RelayCache, attention mask and token ids of a forward's arguments, whether given by name or by position."""
    cache = next((given for given in (*kwargs.values(), *args) if isinstance(given, RelayCache)), None)
    if cache is not None and args:
        kwargs = inspect.signature(forward).bind_partial(*args, **kwargs).arguments
    return cache, kwargs.get("attention_mask"), kwargs.get("input_ids")


def missed_by(context: ForwardContext) -> RelayError | None:
    """The error of a forward in which attention of some layer that holds KV of the rows was not computed here."""
    cache, seen = context.cache, context.seen
    if seen.missed is not None:
        return RelayError(RECHOSEN) if seen.rechosen else seen.missed
    # A layer with KV and a state may use the state alone. Any other layer that stores no KV mixes tokens in a way that
    # the cache can't see.
    holding = {i for i, layer in cache.kv_layers.items() if layer.is_initialized or not isinstance(layer, StateLayer)}
    attended = seen.updated if cache.rows.whole_rows else seen.attended
    if not cache.rows.whole_rows:
        holding |= cache.reusing
    if not holding and not any(layer.holds_state for layer in cache.state_layers.values()):
        return UnfitModelError("the model does not use the cache that it is given")
    if missed := sorted(holding - attended):
        if seen.rechosen:
            return RelayError(RECHOSEN)
        what = f"layers {missed} did not"
        return UnfitModelError(f"not all attention goes through Transformers' attention interface: {what}")
    return None
