"""The specification against scalar arithmetic, against stock attention, and against what it says of itself."""

import math

import pytest
import torch
import torch.nn.functional as F

from relay_hf.kernels.reference import relay_attention
from relay_hf.kernels.segment import Segment


def randn(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_output(query, segments, key, value, row, head, t, kv_head, own, window, softcap, sink, slope):
    """Output of one query of one head, token by token; `own` is the row's start, length and mask."""
    own_start, own_length, own_mask = own
    tokens = []
    shared = 0
    for segment in segments:
        if segment.rows is None or row in segment.rows:
            for i in range(segment.length):
                tokens.append((segment.start + i, segment.key[kv_head, i], segment.value[kv_head, i]))
            shared += segment.length
    column = own_length - query.shape[2] + t
    for c in range(own_start, column + 1):
        if own_mask[c]:
            tokens.append((shared + c - own_start, key[row, kv_head, c], value[row, kv_head, c]))
    position = shared + column - own_start

    total, out = math.exp(sink), torch.zeros(value.shape[3], dtype=torch.float64)
    for token_position, token_key, token_value in tokens:
        if position - token_position < window:
            score = float(query[row, head, t] @ token_key) / math.sqrt(query.shape[3])
            weight = math.exp(softcap * math.tanh(score / softcap) + slope * (token_position - position))
            total, out = total + weight, out + weight * token_value
    return out / total


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_equals_scalar_arithmetic_with_every_feature_on(window):
    query, key, value = randn(2, 4, 2, 6, seed=0), randn(2, 2, 5, 6, seed=1), randn(2, 2, 5, 3, seed=2)
    segments = [
        Segment(randn(2, 4, 6, seed=3), randn(2, 4, 3, seed=4)),
        Segment(randn(2, 3, 6, seed=5), randn(2, 3, 3, seed=6), start=4, rows=(1,)),
    ]
    own_start, own_length = torch.tensor([2, 0]), torch.tensor([5, 4])
    own_mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    sinks, slopes = randn(4, seed=7), randn(4, seed=8)
    key[1, :, 4] = value[1, :, 4] = float("nan")
    out = relay_attention(
        query, segments, key, value,
        own_start=own_start, own_length=own_length, own_mask=own_mask,
        sliding_window=window, softcap=2.0, sinks=sinks, alibi_slopes=slopes,
    )  # fmt: skip
    for row in range(2):
        own = (int(own_start[row]), int(own_length[row]), own_mask[row])
        for head in range(4):
            for t in range(2):
                expected = one_output(
                    query, segments, key, value, row, head, t, head // 2, own, window, 2.0, sinks[head], slopes[head]
                )
                torch.testing.assert_close(out[row, t, head], expected, rtol=1e-12, atol=1e-12)


def test_equals_stock_attention_over_the_concatenation():
    query, key, value = randn(3, 6, 4, 16, seed=0), randn(3, 2, 7, 16, seed=1), randn(3, 2, 7, 16, seed=2)
    segment = Segment(randn(2, 11, 16, seed=3), randn(2, 11, 16, seed=4))
    all_key = torch.cat([segment.key.expand(3, -1, -1, -1), key], dim=2)
    all_value = torch.cat([segment.value.expand(3, -1, -1, -1), value], dim=2)
    causal = torch.ones(4, 18, dtype=torch.bool).tril(14)
    stock = F.scaled_dot_product_attention(query, all_key, all_value, attn_mask=causal, scale=0.3, enable_gqa=True)
    out = relay_attention(query, [segment], key, value, scale=0.3)
    torch.testing.assert_close(out, stock.transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_rows_of_any_own_length_are_rows_cut_to_it():
    query, key, value = randn(3, 4, 2, 8, seed=0), randn(3, 2, 7, 8, seed=1), randn(3, 2, 7, 8, seed=2)
    segments = [Segment(randn(2, 5, 8, seed=3), randn(2, 5, 8, seed=4))]
    out = relay_attention(query, segments, key, value, own_length=torch.tensor([2, 7, 4]), sliding_window=6)
    for row, length in enumerate((2, 7, 4)):
        one = slice(row, row + 1)
        cut = relay_attention(
            query[one], segments, key[one, :, :length], value[one, :, :length], sliding_window=6
        )  # fmt: skip
        assert torch.equal(out[one], cut)


def test_alibi_equals_stock_attention_with_a_bias():
    query, key, value = randn(2, 4, 3, 16, seed=0), randn(2, 2, 5, 16, seed=1), randn(2, 2, 5, 16, seed=2)
    segment = Segment(randn(2, 11, 16, seed=3), randn(2, 11, 16, seed=4))
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]).double()
    all_key = torch.cat([segment.key.expand(2, -1, -1, -1), key], dim=2)
    all_value = torch.cat([segment.value.expand(2, -1, -1, -1), value], dim=2)
    distance = torch.arange(16) - torch.arange(13, 16)[:, None]
    bias = (slopes[:, None, None] * distance).masked_fill(distance > 0, float("-inf"))
    stock = F.scaled_dot_product_attention(query, all_key, all_value, attn_mask=bias, enable_gqa=True)
    out = relay_attention(query, [segment], key, value, alibi_slopes=slopes)
    torch.testing.assert_close(out, stock.transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_left_padding_changes_nothing_for_real_queries():
    query, key, value = randn(1, 2, 3, 8, seed=0), randn(1, 2, 5, 8, seed=1), randn(1, 2, 5, 8, seed=2)
    segment = Segment(randn(2, 6, 8, seed=3), randn(2, 6, 8, seed=4))
    plain = relay_attention(query, [segment], key, value, sliding_window=7)
    padding = torch.full((1, 2, 4, 8), 9.0, dtype=torch.float64)
    padded = relay_attention(
        query, [segment], torch.cat([padding, key], 2), torch.cat([padding, value], 2),
        own_start=torch.tensor([4]), sliding_window=7,
    )  # fmt: skip
    torch.testing.assert_close(padded, plain, rtol=1e-12, atol=1e-12)


def test_two_segments_are_the_one_they_were_cut_from():
    query, key, value = randn(2, 2, 1, 8, seed=0), randn(2, 2, 3, 8, seed=1), randn(2, 2, 3, 8, seed=2)
    k, v = randn(2, 9, 8, seed=3), randn(2, 9, 8, seed=4)
    whole = relay_attention(query, [Segment(k, v)], key, value, sliding_window=8)
    cut = [Segment(k[:, :5], v[:, :5]), Segment(k[:, 5:], v[:, 5:], start=5, rows=(1, 0))]
    torch.testing.assert_close(relay_attention(query, cut, key, value, sliding_window=8), whole, rtol=0, atol=0)


def test_a_query_that_sees_nothing_gives_zero():
    query, key = randn(1, 2, 1, 8, seed=0), randn(1, 2, 3, 8, seed=1)
    hidden = torch.zeros(1, 3, dtype=torch.bool)
    assert torch.equal(relay_attention(query, [], key, key, own_mask=hidden), torch.zeros(1, 1, 2, 8).double())
    with_sink = relay_attention(query, [], key, key, own_mask=hidden, sinks=torch.zeros(2))
    assert torch.equal(with_sink, torch.zeros(1, 1, 2, 8).double())
