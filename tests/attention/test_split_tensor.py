"""Attention code of a model's own, over keys and values in two parts: what it gives over whole ones."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from relay_hf.attention.split_tensor import Columns, SplitTensor
from relay_hf.errors import UnfitModelError

ROWS, HEADS, QUERIES, SIZE = 3, 4, 5, 8
OFFSET, SHARED, OWN = 14, 12, 9
WIDTH = OFFSET + OWN


def eager(query, key, value, mask, bias):
    """GPT-J, RemBERT."""
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    weights = F.softmax(scores + mask + bias, dim=-1).to(value.dtype)
    return torch.matmul(F.dropout(weights, p=0.1, training=False), value)


def in_place(query, key, value, mask, bias):
    """Falcon."""
    scores = query @ key.transpose(-1, -2)
    scores /= math.sqrt(query.shape[-1])
    scores += bias
    return F.softmax(scores + mask, dim=-1, dtype=query.dtype) @ value


def merged_heads(query, key, value, mask, bias):
    """BLOOM, XGLM."""
    rows, heads, queries, size = query.shape
    query, key = query.reshape(rows * heads, -1, size), key.reshape(rows * heads, -1, size).transpose(1, 2)
    bias = bias.expand(rows, heads, queries, -1).reshape(rows * heads, queries, -1)
    scores = bias.baddbmm(batch1=query, batch2=key, beta=1.0, alpha=1 / math.sqrt(size))
    scores = scores.view(rows, heads, queries, -1) + mask
    scores = torch.max(scores, torch.full((), torch.finfo(scores.dtype).min, dtype=scores.dtype))
    weights = F.softmax(scores.view(rows * heads, queries, -1), dim=-1)
    return torch.bmm(weights, value.reshape(rows * heads, -1, size)).view(rows, heads, queries, size)


def masked(query, key, value, mask, bias):
    """MPT, GPT-Neo."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5 + bias[0]
    scores = scores.masked_fill(mask < 0, torch.finfo(scores.dtype).min)
    scores = torch.where(mask == 0, scores, torch.finfo(scores.dtype).min)
    return torch.matmul(F.softmax(scores.double(), dim=-1), value)


def fused(query, key, value, mask, bias):
    """Llama 4."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask + bias)


def fused_bool(query, key, value, mask, bias):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask == 0)


def sinks(query, key, value, mask, bias):
    """Inkling 2."""
    scores = torch.matmul(query, key.transpose(2, 3)) * 0.3 + bias + mask
    sink = torch.arange(HEADS, dtype=query.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.matmul(F.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1], value)


FORMS = [eager, in_place, merged_heads, masked, fused, fused_bool, sinks]


def tensors(own_start, heads=HEADS):
    """Queries, keys and values in parts, a causal mask in the caller's columns, and a bias."""
    torch.manual_seed(0)
    columns = Columns(ROWS, OFFSET, SHARED, None if own_start is None else torch.tensor(own_start))
    query = torch.randn(ROWS, HEADS, QUERIES, SIZE, dtype=torch.float64)
    parts = [(torch.randn(1, heads, SHARED, SIZE).double(), torch.randn(ROWS, heads, OWN, SIZE).double()) for _ in "kv"]
    key, value = (SplitTensor(*part, 2, columns) for part in parts)
    starts = torch.tensor(own_start or [0] * ROWS) + OFFSET - SHARED
    places, last = torch.arange(WIDTH), torch.arange(WIDTH - QUERIES, WIDTH)
    seen = (places[None, None] >= starts[:, None, None]) & (places <= last[:, None])
    mask = torch.zeros(ROWS, 1, QUERIES, WIDTH, dtype=torch.float64).masked_fill(~seen[:, None], -1e300)
    return query, key, value, mask, torch.randn(1, HEADS, 1, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("own_start", [None, [0, 3, 4]])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_two_parts_give_what_the_whole_gives(form, own_start):
    query, key, value, mask, bias = tensors(own_start)
    got = form(query, key, value, mask, bias)
    assert not isinstance(got, SplitTensor)
    torch.testing.assert_close(got, form(query, key.whole(), value.whole(), mask, bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("own_start", [None, [0, 3, 4]])
def test_grouped_heads(own_start):
    query, key, value, mask, _ = tensors(own_start, heads=2)

    def repeated(kv):
        return kv[:, :, None, :, :].expand(ROWS, 2, 2, WIDTH, SIZE).reshape(ROWS, 4, WIDTH, SIZE)

    expected = fused(query, repeated(key.whole()), repeated(value.whole()), mask, 0)
    torch.testing.assert_close(fused(query, repeated(key), repeated(value), mask, 0), expected, rtol=0, atol=1e-12)
    got = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_whole_has_the_callers_columns():
    _, key, *_ = tensors([0, 3, 4])
    whole = key.whole()
    assert whole.shape == key.shape == (ROWS, HEADS, WIDTH, SIZE)
    for row, start in enumerate([0, 3, 4]):
        begin = OFFSET - SHARED + start
        assert not whole[row, :, :begin].any()
        assert torch.equal(whole[row, :, begin : begin + SHARED], key.shared[0])
        assert torch.equal(whole[row, :, begin + SHARED :], key.own[row, :, start:])


class _Products(TorchDispatchMode):
    """Sizes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bmm.default:
            self.sizes.append([tuple(arg.shape) for arg in args])
        return func(*args, **(kwargs or {}))


def test_the_shared_part_is_read_once_for_all_rows():
    query, key, value, mask, bias = tensors([0, 3, 4])
    with _Products() as products:
        eager(query, key, value, mask, bias)
    stacked = ROWS * QUERIES
    assert [(HEADS, stacked, SIZE), (HEADS, SIZE, SHARED)] in products.sizes
    assert [(HEADS, stacked, SHARED), (HEADS, SHARED, SIZE)] in products.sizes
    assert len(products.sizes) == 4


def test_what_is_not_known_gets_the_whole():
    _, key, *_ = tensors([0, 3, 4])
    assert torch.equal(torch.cumsum(key, dim=2), torch.cumsum(key.whole(), dim=2))
    assert torch.equal(key.transpose(0, 1), key.whole().transpose(0, 1))


def test_scores_that_would_have_to_be_whole_are_refused():
    query, key, *_ = tensors([0, 3, 4])
    with pytest.raises(UnfitModelError, match="applies an unknown operation to its scores"):
        torch.topk(torch.matmul(query, key.transpose(-1, -2)), 3)


def test_a_mask_that_was_changed_in_place_is_split_again():
    query, key, value, mask, bias = tensors([0, 3, 4])
    first = eager(query, key, value, mask, bias)
    mask[:, :, :, OFFSET - 2] = -1e300
    assert not torch.equal(eager(query, key, value, mask, bias), first)
