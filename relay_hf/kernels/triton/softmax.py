"""Online softmax over a run of tokens: the inner loop of the decode and the prefill kernels.

The state of `M` stacked queries is `acc [M, DV]`, `peak [M]` and `total [M]`, float32: the weighted sum of values, the
largest score so far and the sum of weights. Scores are in units of log2 (Milakov & Gimelshein, arXiv 1805.02867).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tanh(x):
    """tanh to float32's precision: a quotient of exponentials, and near 0, where that loses digits, a series."""
    square = x * x
    series = x * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))))
    power = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - power) / (1.0 + power)
    return tl.where(square < 0.0625, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def start(sinks_ptr, query_head, valid, M: tl.constexpr, BLOCK_DV: tl.constexpr, SINKS: tl.constexpr):
    """The first state of queries: nothing seen or, if SINKS, one token with the sink's score and a value of 0."""
    acc = tl.zeros([M, BLOCK_DV], dtype=tl.float32)
    peak = tl.full([M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([M], dtype=tl.float32)
    if SINKS:
        peak = tl.load(sinks_ptr + query_head, mask=valid, other=0.0).to(tl.float32) * LOG2E
        total += 1.0
    return acc, peak, total


@triton.jit
def finish(acc, peak, total):
    """Normalised output and natural log-sum-exp; 0 and -inf where nothing was seen."""
    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    lse = tl.where(seen, peak * LN2 + tl.log(divisor), float("-inf"))
    return acc / divisor[:, None], lse


@triton.jit
def store_out(acc, total, out_ptr, slot, valid, VALUE_SIZE: tl.constexpr, BLOCK_DV: tl.constexpr):
    """Write normalised output to the rows `slot [M]` of `out [..., DV]`; 0 where nothing was seen."""
    dims = tl.arange(0, BLOCK_DV)
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    ptrs = out_ptr + slot[:, None] * VALUE_SIZE + dims[None, :]
    tl.store(ptrs, out.to(out_ptr.dtype.element_ty), mask=valid[:, None] & (dims < VALUE_SIZE)[None, :])


@triton.jit
def load_query(
    query_ptr, offset, valid, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, ALIGNMENT: tl.constexpr
):  # fmt: skip
    """`[M, D]` queries at the offsets `[M]`; 0 where not valid."""
    dims = tl.arange(0, BLOCK_D)
    ptrs = query_ptr + tl.multiple_of(offset, ALIGNMENT)[:, None] + dims[None, :]
    return tl.load(ptrs, mask=valid[:, None] & (dims < HEAD_SIZE)[None, :], other=0.0)


@triton.jit
def load_tile(ptr, stride, token, end, N: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """`[N, BLOCK]` keys or values from `token` on; 0 beyond `SIZE` and from `end` on."""
    tokens = tl.arange(0, N)
    dims = tl.arange(0, BLOCK)
    # The stride is int64, and so is the product: a segment may hold more than 2**31 elements.
    ptrs = ptr + token * stride + tokens[:, None] * stride + dims[None, :]
    mask = (tokens < end - token)[:, None]
    if BLOCK > SIZE:
        mask = mask & (dims < SIZE)[None, :]
    return tl.load(ptrs, mask=mask, other=0.0)


@triton.jit
def attend_tile(
    acc,
    peak,
    total,
    query,
    key_ptr,
    key_stride,
    value_ptr,
    value_stride,
    mask_ptr,
    token,
    end,
    query_position,
    first_position,
    scale,
    softcap,
    window,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HOLES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The state after the `BLOCK_N` tokens from `token` on, without those from `end` on."""
    tokens = token + tl.arange(0, BLOCK_N)
    key = load_tile(key_ptr, key_stride, token, end, BLOCK_N, HEAD_SIZE, BLOCK_D)
    if UPCAST:
        scores = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee")
    else:
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")

    # bias [N]: as an addend it costs nothing beside the scale, where a selection would cost one operation a score.
    attended = tokens < end
    if HOLES:
        attended = tl.load(mask_ptr + tokens, mask=attended, other=0) != 0
    bias = tl.where(attended, 0.0, float("-inf"))
    if SOFTCAP:
        scores = softcap * LOG2E * tanh(scores * (scale / softcap)) + bias[None, :]
    else:
        scores = scores * (scale * LOG2E) + bias[None, :]
    # distance [M, N]: how far a key lies behind the query
    if CAUSAL or WINDOW:
        distance = query_position[:, None] - (first_position + tokens)[None, :]
        if CAUSAL:
            scores = tl.where(distance >= 0, scores, float("-inf"))
        if WINDOW:
            scores = tl.where(distance < window, scores, float("-inf"))

    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    # A query that has seen nothing yet has a peak of -inf: to subtract 0 instead gives weights of 0, not NaN.
    reference = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - reference[:, None])
    shrink = tl.exp2(peak - reference)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = acc * shrink[:, None]

    value = load_tile(value_ptr, value_stride, token, end, BLOCK_N, VALUE_SIZE, BLOCK_DV)
    weights = weights.to(value.dtype)
    if UPCAST:
        acc = tl.dot(weights.to(tl.float32), value.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(weights, value, acc, input_precision="ieee")
    return acc, new_peak, total


@triton.jit
def attend_range(
    acc,
    peak,
    total,
    query,
    key_ptr,
    key_stride,
    value_ptr,
    value_stride,
    mask_ptr,
    begin,
    end,
    query_position,
    first_position,
    scale,
    softcap,
    window,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HOLES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The state after the tokens `begin` to `end`.

    The last tile is masked in the loop like all others. A separate tile after the loop is not pipelined, and needs more
    registers (sm_90, bfloat16, head size 128: 255 instead of 147 at 16 queries, and 56 bytes spilled at 64).
    """
    for token in tl.range(begin, end, BLOCK_N):
        acc, peak, total = attend_tile(
            acc, peak, total, query, key_ptr, key_stride, value_ptr, value_stride, mask_ptr, token, end,
            query_position, first_position, scale, softcap, window,
            HEAD_SIZE, VALUE_SIZE, BLOCK_N, BLOCK_D, BLOCK_DV, CAUSAL, WINDOW, SOFTCAP, HOLES, UPCAST,
        )  # fmt: skip
    return acc, peak, total
