"""Offsets beyond 2**31 elements: wide strides over memory that is mapped and, but for a few pages, never touched."""

import pytest
import torch

from relay_hf.kernels.segment import Segment

from .cases import Case

WIDE = 2**25  # elements between tokens


def spread(tensor, dim, stride):
    """The tensor's numbers with `stride` elements between neighbours along `dim`."""
    strides = [*tensor.stride()]
    strides[dim] = stride
    size = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, strides, strict=True))
    wide = torch.empty(size, dtype=tensor.dtype).as_strided(tensor.shape, strides)
    wide.copy_(tensor)
    return wide


@pytest.mark.parametrize("length", [1, 32])
def test_a_segment_of_more_than_2_to_the_31_elements(length):
    case = Case(B=2, H=2, G=2, P=(70,), S=33, T=length, dtype=torch.float16)
    out = case.run(backend="triton")
    part = case.segments[0]
    case.segments = [Segment(spread(part.key, 1, WIDE), spread(part.value, 1, WIDE))]
    assert case.segments[0].key[:, -1].storage_offset() > 2**31
    torch.testing.assert_close(case.run(backend="triton"), out, rtol=0, atol=0)


@pytest.mark.parametrize("length", [1, 32])
def test_own_buffers_of_more_than_2_to_the_31_elements(length):
    case = Case(B=3, H=2, G=2, P=(9,), S=33, T=length, dtype=torch.float16)
    out = case.run(backend="triton")
    key, value = case.key.contiguous(), case.value.contiguous()
    case.key, case.value = spread(key, 0, 2**31 - 16), spread(value, 1, 2**31 - 16)
    torch.testing.assert_close(case.run(backend="triton"), out, rtol=0, atol=0)
