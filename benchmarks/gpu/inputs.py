"""A call of the operator on random inputs: what the kernels say, what is exact, and what stock attention says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_hf.kernels import reference
from relay_hf.kernels.arguments import ScoreOptions
from relay_hf.kernels.plan import Plan
from relay_hf.kernels.segment import Segment
from relay_hf.kernels.triton import relay_attention

from .cases import Case

_LEAST_QUERIES = 16  # of a product in stock's eager attention
_CAPACITY = 9  # columns that a buffer has beyond those in use


@dataclass(eq=False)
class Inputs:
    """The tensors of a call; `options` are scale, sliding_window, softcap and sinks."""

    query: Tensor
    key: Tensor
    value: Tensor
    segments: list[Segment]
    own_start: Tensor | None
    own_length: Tensor | None
    own_mask: Tensor | None
    options: dict

    @classmethod
    def draw(cls, case: Case, device: torch.device, seed: int) -> Inputs:
        """Fresh random inputs, in the strides of a model; NaN in all columns that are not to be read."""
        generator = torch.Generator(device).manual_seed(seed)
        dtype, heads = getattr(torch, case.dtype), case.kv_heads * case.group
        value_size = case.value_size or case.head_size

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator).to(dtype)

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (case.rows,), device=device, generator=generator)

        query = randn(case.rows, case.length, heads, case.head_size).transpose(1, 2)
        key = randn(case.rows, case.kv_heads, case.columns + _CAPACITY, case.head_size)
        value = randn(case.rows, case.kv_heads, case.columns + _CAPACITY, value_size)
        segments, start = [], 0
        for tokens, rows in case.segments:
            k, v = randn(case.kv_heads, tokens, case.head_size), randn(case.kv_heads, tokens, value_size)
            segments.append(Segment(k, v, start, rows))
            start += tokens
        own_length = integers(case.length, case.columns) if case.own_length else None
        ends = torch.full((case.rows,), case.columns, device=device) if own_length is None else own_length
        unread = torch.arange(key.shape[2], device=device) >= ends[:, None]
        for buffer in (key, value):
            buffer.masked_fill_(unread[:, None, :, None], float("nan"))
        mask = torch.rand(case.rows, case.columns, device=device, generator=generator) > 0.3
        return cls(
            query=query,
            key=key[:, :, : case.columns],
            value=value[:, :, : case.columns],
            segments=segments,
            own_start=integers(0, case.columns // 2) if case.own_start else None,
            own_length=own_length,
            own_mask=mask if case.holes else None,
            options={
                "scale": case.head_size**-0.5,
                "sliding_window": case.window,
                "softcap": case.softcap,
                "sinks": randn(heads) if case.sinks else None,
            },
        )

    def one_head(self, head: int) -> Inputs:
        """One KV head and its queries, of inputs without sinks."""
        group = self.query.shape[1] // self.key.shape[1]
        at = slice(head, head + 1)
        return dataclasses.replace(
            self,
            query=self.query[:, head * group : (head + 1) * group],
            key=self.key[:, at],
            value=self.value[:, at],
            segments=[Segment(s.key[at], s.value[at], s.start, s.rows) for s in self.segments],
        )

    def plan(self) -> Plan:
        """The geometry, for the kernels."""
        shared = (sum(s.length for s in self._segments_of(row)) for row in range(len(self.query)))
        return Plan(
            len(self.query),
            self.query.shape[2],
            self.key.shape[2],
            shared_length=tuple(shared),
            own_start=self.own_start,
            own_length=self.own_length,
            own_mask=self.own_mask,
        )

    def ours(self) -> Tensor:
        """What the kernels compute, `[B, T, Hq, Dv]`."""
        options = ScoreOptions(**self.options)
        return relay_attention(self.plan(), self.query, self.segments, self.key, self.value, options)

    def exact(self) -> Tensor:
        """The reference, in float64."""
        wide = {name: v.double() if isinstance(v, Tensor) else v for name, v in self.options.items()}
        segments = [Segment(s.key.double(), s.value.double(), s.start, s.rows) for s in self.segments]
        where = {"own_start": self.own_start, "own_length": self.own_length, "own_mask": self.own_mask}
        key, value = self.key.double(), self.value.double()
        return reference.relay_attention(self.query.double(), segments, key, value, **where, **wide)

    def stock(self) -> Tensor:
        """What stock attention computes over the concatenation in this dtype; 0 where nothing is visible."""
        return torch.cat([self._stock_row(row) for row in range(len(self.query))]).nan_to_num(0.0)

    def real(self) -> Tensor:
        """True where a query is not in a padding column, `[B, T, 1, 1]`."""
        columns = torch.stack([self._query_columns(row) for row in range(len(self.query))])
        start = torch.zeros_like(columns[:, 0]) if self.own_start is None else self.own_start
        return (columns >= start[:, None])[:, :, None, None]

    def _segments_of(self, row: int) -> list[Segment]:
        return [segment for segment in self.segments if segment.rows is None or row in segment.rows]

    def _length_of(self, row: int) -> int:
        return self.key.shape[2] if self.own_length is None else int(self.own_length[row])

    def _query_columns(self, row: int) -> Tensor:
        end = self._length_of(row)
        return torch.arange(end - self.query.shape[2], end, device=self.query.device)

    def _stock_row(self, row: int) -> Tensor:
        mine, length = self._segments_of(row), self._length_of(row)
        start = 0 if self.own_start is None else int(self.own_start[row])
        columns = torch.arange(length, device=self.query.device)
        shared = [torch.arange(s.start, s.start + s.length, device=self.query.device) for s in mine]
        before_own = sum(s.length for s in mine) - start
        positions = torch.cat([*shared, before_own + columns])
        distance = (before_own + self._query_columns(row))[:, None] - positions
        may = columns >= start
        if self.own_mask is not None:
            may = may & self.own_mask[row, :length]
        visible = (distance >= 0) & torch.cat([may.new_ones(len(positions) - length), may])
        if self.options["sliding_window"] is not None:
            visible = visible & (distance < self.options["sliding_window"])

        group = self.query.shape[1] // self.key.shape[1]
        key = torch.cat([*(s.key for s in mine), self.key[row, :, :length]], dim=1).repeat_interleave(group, dim=0)
        value = torch.cat([*(s.value for s in mine), self.value[row, :, :length]], dim=1)
        value = value.repeat_interleave(group, dim=0)
        if any(self.options[name] is not None for name in ("softcap", "sinks")):
            out = self._eager(self.query[row], key, value, visible)
        else:
            query, scale = self.query[row][None], self.options["scale"]
            out = F.scaled_dot_product_attention(query, key[None], value[None], attn_mask=visible, scale=scale)[0]
        return out.transpose(0, 1)[None]

    def _eager(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Attention as models spell it out: products in the dtype, softmax in float32."""
        options, queries = self.options, query.shape[1]
        # Of one query the product would be another kernel's, whose sums are shorter: 2e-8 for 6e-8 in float32.
        query = query.repeat(1, -(-_LEAST_QUERIES // queries), 1)
        visible = visible.repeat(query.shape[1] // queries, 1)
        scores = query @ key.transpose(1, 2) * options["scale"]
        if options["softcap"] is not None:
            scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
        scores = scores.float()
        scores = scores.masked_fill(~visible, float("-inf"))
        if options["sinks"] is not None:
            sinks = options["sinks"].float()[:, None, None].expand(-1, scores.shape[1], 1)
            scores = torch.cat([scores, sinks], dim=2)
        weights = torch.softmax(scores, dim=2)[..., : visible.shape[1]].to(value.dtype).nan_to_num(0.0)
        return (weights @ value)[:, :queries]
