"""The operator in PyTorch's dispatcher, `torch.ops.relay_hf.relay_attention`, so that it is one node of a graph.

The schema has no segments, so it takes their fields as lists. The rows of all segments are one list of ints: for each
segment the number of its rows, or -1 for all rows, and then the rows. Arguments are not validated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from .arguments import OwnColumns, ScoreOptions
from .segment import Segment
from .validation import refuse_gradient

__all__ = ["call", "register"]

_LIBRARY = torch.library.Library("relay_hf", "FRAGMENT")
_LIBRARY.define(
    "relay_attention(Tensor query, Tensor[] segment_keys, Tensor[] segment_values, SymInt[] segment_starts, "
    "int[] segment_rows, Tensor key, Tensor value, Tensor? own_start, Tensor? own_length, Tensor? own_mask, "
    "float scale, int? sliding_window, float? softcap, Tensor? sinks, Tensor? alibi_slopes, str backend) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def call(
    query: torch.Tensor,
    segments: Sequence[Segment],
    key: torch.Tensor,
    value: torch.Tensor,
    own: OwnColumns,
    options: ScoreOptions,
    backend: str,
) -> torch.Tensor:
    """Call the registered operator through the dispatcher."""
    rows: list[int] = []
    for segment in segments:
        rows.extend((-1,) if segment.rows is None else (len(segment.rows), *segment.rows))
    return torch.ops.relay_hf.relay_attention(
        query,
        [segment.key for segment in segments],
        [segment.value for segment in segments],
        [segment.start for segment in segments],
        rows,
        key,
        value,
        *own,
        *options,
        backend,
    )


def register(run: Callable[..., torch.Tensor]) -> None:
    """Register `run(query, segments, key, value, own, options, backend)` as the operator, on every device."""

    def relay_attention(
        query: torch.Tensor,
        segment_keys: list[torch.Tensor],
        segment_values: list[torch.Tensor],
        segment_starts: list[int],
        segment_rows: list[int],
        key: torch.Tensor,
        value: torch.Tensor,
        own_start: torch.Tensor | None,
        own_length: torch.Tensor | None,
        own_mask: torch.Tensor | None,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
        alibi_slopes: torch.Tensor | None,
        backend: str,
    ) -> torch.Tensor:
        _refuse_gradients(query, segment_keys, segment_values, key, value, sinks, alibi_slopes)
        rows = _decode(segment_rows)
        fields = zip(segment_keys, segment_values, segment_starts, rows, strict=True)
        return run(
            query,
            [Segment(*each) for each in fields],
            key,
            value,
            OwnColumns(own_start, own_length, own_mask),
            ScoreOptions(scale, sliding_window, softcap, sinks, alibi_slopes),
            backend,
        )

    _LIBRARY.impl("relay_attention", relay_attention, "CompositeExplicitAutograd")


def _decode(segment_rows: list[int]) -> Iterator[tuple[int, ...] | None]:
    at = 0
    while at < len(segment_rows):
        count = segment_rows[at]
        at += 1
        yield None if count < 0 else tuple(segment_rows[at : at + count])
        at += max(count, 0)


def _fake(
    query: torch.Tensor,
    segment_keys: list[torch.Tensor],
    segment_values: list[torch.Tensor],
    segment_starts: list[int],
    segment_rows: list[int],
    key: torch.Tensor,
    value: torch.Tensor,
    own_start: torch.Tensor | None,
    own_length: torch.Tensor | None,
    own_mask: torch.Tensor | None,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    backend: str,
) -> torch.Tensor:
    _refuse_gradients(query, segment_keys, segment_values, key, value, sinks, alibi_slopes)
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[3])


torch.library.register_fake("relay_hf::relay_attention", _fake, lib=_LIBRARY)


def _refuse_gradients(
    query: torch.Tensor,
    segment_keys: list[torch.Tensor],
    segment_values: list[torch.Tensor],
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
) -> None:
    named = {"query": query, "key": key, "value": value, "sinks": sinks, "alibi_slopes": alibi_slopes}
    named |= {f"segment_keys[{i}]": part for i, part in enumerate(segment_keys)}
    named |= {f"segment_values[{i}]": part for i, part in enumerate(segment_values)}
    for name, tensor in named.items():
        if tensor is not None:
            refuse_gradient(name, tensor)
