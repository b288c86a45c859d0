"""Putting tokens through the model with a RelayCache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cache_utils import PrefixKV, RelayCache
from ..errors import RelayError
from ..model.architectures import architecture_of
from ..model.compiling import is_compiled
from ..model.upstream.models import prepare_inputs
from .call import open_call

if TYPE_CHECKING:
    from ..relay import Relay


def run(
    relay: Relay, input_ids: Tensor, inputs: dict[str, Any], cache: RelayCache, start: int, chunk: int | None
) -> Any:
    """Put the columns of `input_ids` from `start` on through the model, as `GenerationMixin._prefill` does.

    That method is not called itself: chunked, it begins at column 0 whatever the cache holds (5.17).
    """
    model, columns = relay.model, input_ids.shape[1]
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    outputs = None
    for begin in range(start, columns, chunk or columns):
        end = min(begin + chunk, columns) if chunk else columns
        step = {**inputs, relay.cache_name: cache}
        step["attention_mask"] = None if mask is None else mask[:, :end]
        if positions is not None:
            step["position_ids"] = positions[:, :end]
        model_inputs = prepare_inputs(model, input_ids[:, :end], end - begin, step)
        if positions is not None and model_inputs.get("position_ids") is None and cache.rows.padded:
            raise RelayError("the model counts columns, and rows are padded")
        outputs = as_it_is(relay, {**model_inputs, "return_dict": True})
    return outputs


def as_it_is(relay: Relay, inputs: dict[str, Any]) -> Any:
    """The model's forward, uncompiled: generate() does not compile its prefill where it compiles a model itself.

    torch.compile can't follow a prefill with a RelayCache as a whole, and compiles each module apart. It makes at most
    8 graphs of one piece of code. Since Transformers 5.24 a decorator is the code of all modules' forwards, so a
    prefill would use up the 8, and the decode steps would get none.
    """
    model = relay.model
    if not is_compiled(model):
        return model(**inputs)
    entered = relay.before_forward(model, (), inputs)
    args, inputs = ((), inputs) if entered is None else entered
    output = None
    try:
        output = torch.compiler.disable(model.forward)(*args, **inputs)
    finally:
        relay.after_forward(model, args, output)
    return output


def run_gapless(
    relay: Relay,
    input_ids: Tensor,
    inputs: dict[str, Any],
    cache: RelayCache,
    shared: Sequence[tuple[tuple[int, ...], PrefixKV]],
    chunk: int | None,
) -> Any:
    """`run` over the own tokens of rows of a model with recurrent layers, which see padding as tokens.

    Rows of equal own length go through the model together, without the padding before their own tokens, each group
    with a cache of its own that holds what they share, of `shared` (rows and runs); `cache` (its layout set, its own KV
    empty) gathers what they leave.

    Returns:
        The model's outputs, with the logits of the last token alone: `[B, 1, vocabulary]`.
    """
    call, rows, columns = open_call(), cache.rows, input_ids.shape[1]
    if shared and architecture_of(relay.text_config).recurrent == "steps":
        chunk = 1
    batch = len(input_ids)
    starts = [0] * batch if rows.own_start is None else rows.own_start.tolist()
    lengths = rows.shared_lengths if len(rows.shared_lengths) == batch else rows.shared_lengths * batch
    groups: dict[tuple[int, bool], list[int]] = {}
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        groups.setdefault((start, length > 0), []).append(row)  # without a state before them other code may run
    parts, logits = [], []
    for (start, _), indices in groups.items():
        members, begin = torch.tensor(indices), rows.offset + start
        own = replace(
            rows,
            offset=begin,
            shared_length=tuple(lengths[row] for row in indices),
            own_start=None,
            reserve=columns - begin,
        )
        part = RelayCache(relay.text_config)
        part.share(among(shared, indices), own, len(indices), cache.context)
        call.cache = part
        taken = {name: _rows_of(value, members, len(input_ids)) for name, value in inputs.items()}
        if not rows.parted:
            taken["attention_mask"] = None  # nothing is hidden from a group, and the mask is as wide as the prompt
        outputs = run(relay, input_ids[members.to(input_ids.device)], taken, part, begin, chunk)
        parts.append((part, members))
        logits.append(outputs.logits[:, -1:])
    cache.gather(parts, len(input_ids), columns - rows.offset)
    order = torch.cat([members for _, members in parts]).argsort()
    outputs.logits = torch.cat(logits)[order.to(logits[0].device)]
    outputs[relay.cache_name] = cache
    return outputs


def among(
    shared: Iterable[tuple[tuple[int, ...], PrefixKV]], rows: Sequence[int]
) -> list[tuple[tuple[int, ...], PrefixKV]]:
    """What some of the rows share, by their place among these."""
    places = {row: place for place, row in enumerate(rows)}
    found = ((tuple(places[row] for row in users if row in places), run) for users, run in shared)
    return [(users, run) for users, run in found if users]


def _rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """The part of a forward's input that belongs to some of the rows."""
    whole = not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != batch
    return value if whole else value[rows.to(value.device)]
