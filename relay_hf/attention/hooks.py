"""Around every forward of a patched model: what opens the frame of one that has a RelayCache, and what closes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import RelayError
from ..generation.call import current_call
from ..model.attention_choice import attention_configs, chosen_since, users_implementation
from .context import active_frame
from .forward import check_hits, close_frame, forward_arguments, open_frame, own_columns
from .static_step import static_step

if TYPE_CHECKING:
    from ..relay import Relay


def enter(relay: Relay, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Open the frame of a forward that has a RelayCache; a static decode step gets no mask, or prepared ones."""
    stale = active_frame.get()
    if stale is not None and stale.owner is relay:
        close_frame(stale)
    cache, mask, ids = forward_arguments(relay.model.forward, args, kwargs)
    if cache is None:
        return None
    call, backend = current_call.get(), relay.config.backend
    if call is not None and call.transcript is not None:
        call.transcript.feed(cache, ids)
    if call is None or call.cache is not cache or not call.masks_known:
        configs = attention_configs(relay.model.modules()) if call is None else call.configs
        if kwargs.get("output_attentions") and not cache.rows.parted and "eager" in map(users_implementation, configs):
            raise RelayError(
                "output_attentions=True: attention over a RelayCache has no weights to return. Pass what its "
                "to_dynamic() returns, or leave output_attentions out."
            )
        open_frame(cache, relay, configs, backend, own_columns(cache, mask))
        return None
    by_name = kwargs if len(args) < 2 else {}  # behind the ids comes the mask
    before, decoding = call.decoding, static_step(cache, call.decoding, ids, by_name)
    call.decoding = decoding
    frame = open_frame(cache, relay, call.configs, backend, cache.rows.holes, decoding, call.capture)
    if decoding is None:
        return None
    if decoding is not before:
        decoding.prepare(frame, relay.model)
        if call.stepper is not None:
            call.stepper.prepare(decoding)
    if call.stepper is not None:
        call.stepper.entered()
    unmasked = decoding.masks is None and kwargs.get("attention_mask") is None
    return None if unmasked else (args, {**kwargs, "attention_mask": decoding.masks})


def leave(relay: Relay, complete: bool) -> None:
    """Close it, and check that every layer attended to its segments."""
    frame = active_frame.get()
    if frame is not None and frame.owner is relay:
        call, frame.rechosen = current_call.get(), chosen_since(frame.configs, frame)
        close_frame(frame)
        if call is not None:
            call.rechosen |= frame.rechosen
        if complete:
            check_hits(frame)
            frame.cache.attends_stored = bool(frame.hits) and frame.attends_stored
            frame.cache.traceable = frame.cache.attends_stored and frame.names_layers
        if call is not None:
            call.backends |= frame.backends
