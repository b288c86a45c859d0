"""Merging parts of attention: how the keys were cut into parts must not show."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_hf.kernels import reference
from relay_hf.kernels.torch.merge import merge
from relay_hf.kernels.triton.merge import launch_merge

BATCH, HEADS, LENGTH, VALUE_SIZE = 2, 3, 2, 20


def attention(scores, value):
    """Out and log-sum-exp over the last dimension of scores `[..., K]`, value `[..., K, Dv]`; empty where it is 0."""
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.unsqueeze(-1)).nan_to_num(0.0)
    return (weights.unsqueeze(-2) @ value).squeeze(-2), lse


def by_kernel(outs, lses, own_splits, sinks=None):
    """Parts `[N, B, Hq, T, ...]` laid out as decode leaves them: over segments row by row, then `own_splits` a row."""
    parts, batch = outs.shape[:2]
    shared = parts - own_splits

    def lay_out(tensor):
        segments, own = tensor[:shared].transpose(0, 1).flatten(0, 1), tensor[shared:].transpose(0, 1).flatten(0, 1)
        return torch.cat([segments, own]).float().contiguous()

    out = torch.full((batch, LENGTH, HEADS, VALUE_SIZE), float("nan"))
    row_parts = torch.arange(batch + 1, dtype=torch.int32) * shared
    launch_merge(lay_out(outs), lay_out(lses), out, row_parts, sinks, own_splits, parts, {"OVERLAP": False})
    return out.transpose(1, 2)


def by_torch(outs, lses):
    """The torch backend's way: one part after the other, an empty one with the lowest number for its lse."""
    out, lse = outs[0].float(), lses[0].float().clamp_min(torch.finfo(torch.float32).min)
    for other_out, other_lse in zip(outs[1:], lses[1:], strict=True):
        lowest = torch.finfo(torch.float32).min
        out, lse = merge(out, lse, other_out.float(), other_lse.float().clamp_min(lowest))
    return out


def cut(keys, ends, scores, value):
    """Attention over each part of the keys."""
    bounds = [0, *sorted(ends), keys]
    parts = [attention(scores[..., a:b], value[..., a:b, :]) for a, b in itertools.pairwise(bounds)]
    return torch.stack([out for out, _ in parts]), torch.stack([lse for _, lse in parts])


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 999),
    keys=st.integers(0, 30),
    ends=st.lists(st.integers(0, 30), max_size=8),
    spread=st.sampled_from([1.0, 30.0, 1e4]),
    masked=st.sampled_from(["none", "some", "all"]),
    sinks=st.booleans(),
)
def test_any_split_gives_the_attention_over_all(seed, keys, ends, spread, masked, sinks):
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(BATCH, HEADS, LENGTH, keys, dtype=torch.float64, generator=generator)
    value = torch.randn(BATCH, HEADS, LENGTH, keys, VALUE_SIZE, dtype=torch.float64, generator=generator)
    if masked != "none":
        hidden = torch.rand(scores.shape, generator=generator) < (0.6 if masked == "some" else 2.0)
        scores = scores.masked_fill(hidden, float("-inf"))
    outs, lses = cut(keys, [min(end, keys) for end in ends], scores, value)
    exact, exact_lse = attention(scores, value)

    merged, merged_lse = reference.merge(outs, lses)
    torch.testing.assert_close(merged, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(merged_lse, exact_lse, rtol=1e-12, atol=1e-12)

    # In float32 a log-sum-exp is known to eps / 2 of itself. An error d in one moves the weights of two parts by d / 4,
    # and the output by that of their difference, 2 |value| at most; up to 9 parts follow one another.
    finite = lses[lses.isfinite()].abs()
    known = torch.finfo(torch.float32).eps * float(finite.max()) if finite.numel() else 0.0
    tolerance = 2e-6 + 2 * known * float(value.abs().max() if keys else 0.0)
    torch.testing.assert_close(by_torch(outs, lses).double(), exact, rtol=0, atol=tolerance)
    own_splits = 1 + seed % len(outs)
    torch.testing.assert_close(by_kernel(outs, lses, own_splits).double(), exact, rtol=0, atol=tolerance)
    if sinks:
        sink = torch.randn(HEADS, generator=generator) * spread
        weight = torch.sigmoid(exact_lse - sink.double()[:, None])
        torch.testing.assert_close(
            by_kernel(outs, lses, own_splits, sink).double(), exact * weight.unsqueeze(-1), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("first", [1, 2, 3])
def test_merging_is_associative(first):
    generator = torch.Generator().manual_seed(first)
    outs = torch.randn(4, 5, 7, dtype=torch.float64, generator=generator)
    lses = 10 * torch.randn(4, 5, dtype=torch.float64, generator=generator)
    lses[1, :3], lses[3, 2:], lses[:, 4] = float("-inf"), float("-inf"), float("-inf")
    whole, whole_lse = reference.merge(outs, lses)
    left, left_lse = reference.merge(outs[:first], lses[:first])
    right, right_lse = reference.merge(outs[first:], lses[first:])
    out, lse = reference.merge(torch.stack([left, right]), torch.stack([left_lse, right_lse]))
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(lse, whole_lse, rtol=0, atol=1e-14)
    assert not out[4].any()


def test_more_parts_than_one_block():
    """The kernel merges 32 parts at a time."""
    outs = torch.randn(77, BATCH, HEADS, LENGTH, VALUE_SIZE, dtype=torch.float64)
    lses = 3 * torch.randn(77, BATCH, HEADS, LENGTH, dtype=torch.float64)
    exact, _ = reference.merge(outs, lses)
    torch.testing.assert_close(by_kernel(outs, lses, 13).double(), exact, rtol=0, atol=2e-6)
