"""Attention over one part of the keys, with the log-sum-exp by which parts are merged.

A part is query `[N, Hkv, G, R, D]` over key `[N, Hkv, K, D]` and value `[N, Hkv, K, Dv]`, `K >= 1`. Its out and lse can
be viewed as `[N, Hkv, G, R, Dv]` and `[N, Hkv, G, R]`, from different shapes. The log-sum-exp is natural, float32
(float64 for float64 inputs). `R` counts the queries that may see different keys. An additive mask alone says what they
see; `causal` beside it only lets work be skipped.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad

fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_QUERY_BLOCK = 32  # rows that the fused kernel takes at a time, below 192 rows

# With many queries over values narrower than keys, values padded for the fused kernel are faster than matmul (26.8
# against 40.5 ms for 512 of 512, B=4, 8 heads of 192/128, float32). In decode they are slower (2.0 against 1.2 ms). In
# half precision both compute in float32, as stock does for unequal head sizes; the fused kernel in bfloat16 would have
# twice the error.
_MANY_QUERIES = 128


class PartMask(NamedTuple):
    """The numbers that are added to the scores of a part, after the softcap.

    Attributes:
        additive: `[N or 1, 1, R, K]`, 0 or -inf; None if `causal` is the whole mask, or all keys are visible.
        bias: `[Hkv, G, 1, K]`, of each query head and key; None: no bias.
        causal: no query sees the key of a later query.
    """

    additive: torch.Tensor | None
    bias: torch.Tensor | None
    causal: bool


def attend_part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: PartMask,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and log-sum-exp of one part, by the fused kernel where that can compute it.

    A query that sees nothing has out 0. Its lse is finite but meaningless (0 from the fused kernel).
    """
    if softcap is None and query.is_cpu and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        size, value_size = key.shape[-1], value.shape[-1]
        if fusable(query, key, value):
            return fused_part(query, key, value, mask, scale)
        if value_size < size and query.shape[3] >= _MANY_QUERIES:
            dtype = _exact_dtype(query)
            padded = pad(value.to(dtype), (0, size - value_size))
            out, lse = fused_part(query.to(dtype), key.to(dtype), padded, mask, scale)
            return out[..., :value_size], lse
    return matmul_part(query, key, value, mask, scale, softcap)


def fusable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the fused kernel takes these tensors.

    The kernel itself checks neither strides nor devices: with a last stride other than 1 it would read wrong numbers.
    """
    unit = query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    return query.is_cpu and unit and key.shape[-1] == value.shape[-1]


def fused_part(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: PartMask, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend_part` by PyTorch's CPU flash kernel: equal head sizes, no softcap, last strides of 1."""
    batch, kv_heads, group, rows, size = query.shape
    additive, bias, causal = mask
    stack = not causal if additive is None else rows < _QUERY_BLOCK
    if bias is not None:
        # Unstacked, a bias without a mask is one row for each query head, for any number of queries.
        stack = stack and rows < _QUERY_BLOCK
        additive = _biased_mask(additive, bias, rows if stack else None)
    elif additive is not None and stack and rows > 1 and group > 1:
        additive = additive.repeat(1, 1, group, 1)
    causal = causal and not stack
    # Queries of a KV head that are stacked into one matrix read its keys once, and not once per query head: 164 against
    # 309 us at B=16, heads 12/4, 160 keys. A mask must be stacked too; then this pays only below the kernel's block of
    # queries (bf16, B=4, heads 32/8, 512 keys: 0.54 against 1.31 ms for 4 queries, but 1.08 times slower for 32 of 32
    # keys).
    shape = (batch, kv_heads, group * rows, size) if stack else (batch, kv_heads * group, rows, size)
    out, lse = fused(query.reshape(shape), key, value, 0.0, causal, attn_mask=additive, scale=scale)
    return out, lse


def _biased_mask(mask: torch.Tensor | None, bias: torch.Tensor, stacked_rows: int | None) -> torch.Tensor:
    """The sum of mask and bias: `[N or 1, Hq, R or 1, K]`, or `[N or 1, Hkv, G * R, K]` for stacked queries."""
    both = bias.unsqueeze(0) if mask is None else mask.unsqueeze(2) + bias
    if stacked_rows is None:
        return both.flatten(1, 2)
    return both.expand(-1, -1, -1, stacked_rows, -1).flatten(2, 3)


def matmul_part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: PartMask,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend_part` in plain torch, where the fused kernel can't compute it. Scores are float32 in half precision."""
    dtype = _exact_dtype(query)
    batch, kv_heads, group, rows, size = query.shape
    # Under autocast bmm would round the scores to half precision.
    with torch.autocast(query.device.type, enabled=False):
        stacked = query.to(dtype).reshape(batch * kv_heads, group * rows, size)
        scores = torch.bmm(stacked * scale, key.flatten(0, 1).to(dtype).transpose(1, 2))
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        by_row = scores.view(batch, kv_heads, group, rows, -1)
        if mask.bias is not None:
            by_row += mask.bias
        if mask.causal and mask.additive is None:
            by_row += torch.full(by_row.shape[3:], float("-inf"), dtype=dtype, device=query.device).triu_(1)
        elif mask.additive is not None:
            by_row += mask.additive.unsqueeze(2)
        # The clamps keep a query that sees nothing finite: weights exp(-inf) = 0, out 0.
        lowest, tiny = torch.finfo(dtype).min, torch.finfo(dtype).tiny
        peak = scores.amax(dim=-1, keepdim=True).clamp_(min=lowest)
        total = scores.sub_(peak).exp_().sum(dim=-1, keepdim=True).clamp_(min=tiny)
        out = torch.bmm(scores, value.flatten(0, 1).to(dtype)).div_(total)
        return out, total.log_().add_(peak)


def _exact_dtype(query: torch.Tensor) -> torch.dtype:
    return torch.float64 if query.dtype is torch.float64 else torch.float32
