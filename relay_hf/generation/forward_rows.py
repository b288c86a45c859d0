"""Putting rows of tokens through the model with a RelayCache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..attention.forward import enter, leave
from ..cache_utils import PrefixKV, RelayCache
from ..errors import RelayError
from ..model.compiling import compiled_parts, is_compiled, uncompiled_parts
from ..model.upstream.models import prepare_inputs
from ..model.upstream.names import TOKEN_TYPES
from .call import GenerateCall
from .facts import CallFacts, PrefillInputs


def forward_rows(
    facts: CallFacts, input_ids: Tensor, inputs: dict[str, Any], cache: RelayCache, start: int, chunk: int | None
) -> Any:
    """Put the columns of `input_ids` from `start` on through the model, as `GenerationMixin._prefill` does.

    That method is not called itself, because in chunks it begins at column 0 whatever the cache holds (5.17).
    """
    model, columns = facts.view.model, input_ids.shape[1]
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    outputs = None
    inputs = {name: value for name, value in inputs.items() if name not in TOKEN_TYPES}  # 0 in a relayed call
    for begin in range(start, columns, chunk or columns):
        end = min(begin + chunk, columns) if chunk else columns
        step = {**inputs, facts.view.cache_name: cache}
        step["attention_mask"] = None if mask is None else mask[:, :end]
        if positions is not None:
            step["position_ids"] = positions[..., :end]
        model_inputs = prepare_inputs(model, input_ids[:, :end], end - begin, step)
        if positions is not None and model_inputs.get("position_ids") is None and cache.rows.padded:
            facts.findings.leaves_out_positions = True  # `decide` did not see it: the cache was empty then
            raise RelayError("the model counts columns, and rows are padded")
        outputs = forward_uncompiled(facts, {**model_inputs, "return_dict": True})
    return outputs


def forward_uncompiled(facts: CallFacts, inputs: dict[str, Any]) -> Any:
    """The model's forward, uncompiled: generate() does not compile its prefill where it compiles a model itself.

    torch.compile can't follow a prefill with a RelayCache as a whole, and compiles each module apart. It makes at most
    8 graphs of one piece of code. Since Transformers 5.24 a decorator is the code of all modules' forwards, so a
    prefill would use up the 8, and the decode steps would get none. Where the layers are compiled one by one, it would
    make 18 graphs of 12 layers that no decode step uses.
    """
    model, backend = facts.view.model, facts.config.backend
    if not is_compiled(model):
        with uncompiled_parts(compiled_parts(facts.view.modules)):
            return model(**inputs)
    entered = enter(model, backend, (), inputs)
    args, inputs = ((), inputs) if entered is None else entered
    output = None
    try:
        output = torch.compiler.disable(model.forward)(*args, **inputs)
    finally:
        leave(model, output is not None)
    return output


def forward_by_length(
    call: GenerateCall, asked: PrefillInputs, cache: RelayCache, shared: Sequence[tuple[tuple[int, ...], PrefixKV]]
) -> Any:
    """`forward_rows` over the own tokens of rows of a model with recurrent layers, which see padding as tokens.

    Rows of equal own length go through the model as a group, without the padding before their own tokens. Each group
    has a cache of its own, with the runs of `shared` (rows and prefixes) that its rows use. `cache`, whose layout is
    set and whose own KV is empty, gathers the own KV and the states of all groups.

    Returns:
        The model's outputs, with the logits of the last token alone: `[B, 1, vocabulary]`.
    """
    facts, rows, input_ids = call.facts, cache.rows, asked.input_ids
    view, (batch, columns) = facts.view, input_ids.shape
    chunk = 1 if shared and view.architecture.recurrent == "steps" else asked.chunk
    starts = [0] * batch if rows.own_start is None else rows.own_start.tolist()
    lengths = rows.shared_lengths if len(rows.shared_lengths) == batch else rows.shared_lengths * batch
    groups: dict[tuple[int, bool], list[int]] = {}
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        groups.setdefault((start, length > 0), []).append(row)  # a model may run other code without a state
    parts, logits = [], []
    for (start, _), indices in groups.items():
        members, begin = torch.tensor(indices, device="cpu"), rows.offset + start
        own = replace(
            rows,
            offset=begin,
            shared_length=tuple(lengths[row] for row in indices),
            own_start=None,
            reserve=columns - begin,
        )
        part = RelayCache(view.text_config)
        part.share(among(shared, indices), own, len(indices), cache.context)
        call.cache = part
        taken = {name: _rows_of(name, value, members, batch) for name, value in asked.inputs.items()}
        if not rows.whole_rows:
            taken["attention_mask"] = None  # no token of a group is hidden, and the mask would be as wide as the prompt
        outputs = forward_rows(facts, input_ids[members.to(input_ids.device)], taken, part, begin, chunk)
        parts.append((part, members))
        logits.append(outputs.logits[:, -1:])
    cache.gather(parts, batch, columns - rows.offset)
    order = torch.cat([members for _, members in parts]).argsort()
    outputs.logits = torch.cat(logits)[order.to(logits[0].device)]
    outputs[view.cache_name] = cache
    return outputs


def among(
    shared: Iterable[tuple[tuple[int, ...], PrefixKV]], rows: Sequence[int]
) -> list[tuple[tuple[int, ...], PrefixKV]]:
    """The shared runs of some of the rows, with each row's place among these."""
    places = {row: place for place, row in enumerate(rows)}
    found = ((tuple(places[row] for row in users if row in places), run) for users, run in shared)
    return [(users, run) for users, run in found if users]


def _rows_of(name: str, value: Any, rows: Tensor, batch: int) -> Any:
    """The part of a forward's input that belongs to some of the rows."""
    dim = 1 if name == "position_ids" and value is not None and value.dim() == 3 else 0  # planes of rows
    whole = not isinstance(value, Tensor) or value.dim() == 0 or value.shape[dim] != batch
    return value if whole else value.index_select(dim, rows.to(value.device))
