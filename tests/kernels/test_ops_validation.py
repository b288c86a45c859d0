"""Every argument of the public operator that does not fit is refused by name."""

import doctest

import pytest
import torch

from relay_hf import ops
from relay_hf.kernels.segment import Segment
from relay_hf.kernels.validation import check_arguments
from relay_hf.ops import relay_attention


def arguments():
    return {
        "query": torch.randn(2, 4, 1, 8),
        "segments": [Segment(torch.randn(2, 5, 8), torch.randn(2, 5, 6))],
        "key": torch.randn(2, 2, 3, 8),
        "value": torch.randn(2, 2, 3, 6),
    }


def with_segment(**changes):
    fields = {"key": torch.randn(2, 5, 8), "value": torch.randn(2, 5, 6)} | changes
    return {"segments": [Segment(**fields)]}


BAD = [
    ({"query": [1.0]}, TypeError, r"query must be a tensor \[B, Hq, T, D\]; got list"),
    ({"query": torch.randn(4, 1, 8)}, ValueError, r"query must be \[B, Hq, T, D\].*got \[4, 1, 8\]"),
    ({"query": torch.randn(2, 4, 0, 8)}, ValueError, "query must be .* no size of 0"),
    ({"query": torch.randn(2, 3, 1, 8)}, ValueError, "query must have a multiple of key's 2 heads; got 3"),
    ({"query": torch.randn(2, 4, 4, 8)}, ValueError, "key must have a column for each query, S >= T = 4; got S = 3"),
    ({"query": torch.randn(2, 4, 1, 8).double()}, TypeError, "key must be torch.float64 like query; got torch.float32"),
    ({"query": torch.randn(2, 4, 1, 8, requires_grad=True)}, RuntimeError, r"query requires grad.*torch.no_grad\(\)"),
    ({"key": torch.randn(3, 2, 3, 8)}, ValueError, r"key must be .* = \[2, 2, 3, 8\]; got \[3, 2, 3, 8\]"),
    ({"key": torch.randn(2, 2, 3, 9)}, ValueError, r"key must be .* = \[2, 2, 3, 8\]; got \[2, 2, 3, 9\]"),
    ({"value": torch.randn(2, 2, 4, 6)}, ValueError, r"value must be .* = \[2, 2, 3, 6\]; got \[2, 2, 4, 6\]"),
    ({"value": torch.randn(2, 2, 3, 6, device="meta")}, ValueError, "value must be on cpu, where query is; got meta"),
    ({"segments": None}, TypeError, "segments must be a sequence of Segment.*got NoneType"),
    ({"segments": arguments()["segments"][0]}, TypeError, "segments must be a sequence of Segment.*got Segment"),
    ({"segments": [torch.randn(2, 5, 8)]}, TypeError, r"segments\[0\] must be a Segment; got Tensor"),
    (with_segment(key=torch.randn(1, 2, 5, 8)), ValueError, r"segments\[0\].key must be \[Hkv, P, D\]"),
    (
        with_segment(key=torch.randn(4, 5, 8)),
        ValueError,
        r"segments\[0\].key must be .* = \[2, 5, 8\]; got \[4, 5, 8\]",
    ),
    (with_segment(value=torch.randn(2, 4, 6)), ValueError, r"segments\[0\].value must be .* = \[2, 5, 6\]"),
    (
        with_segment(value=torch.randn(2, 5, 6).half()),
        TypeError,
        r"segments\[0\].value must be torch.float32 like query",
    ),
    (with_segment(start=-1), ValueError, r"segments\[0\].start must be an int of 0 or more; got -1"),
    (with_segment(rows=[0, 1]), TypeError, r"segments\[0\].rows must be a tuple of ints.*got \[0, 1\]"),
    (with_segment(rows=torch.tensor([0])), TypeError, r"tuple\(rows.tolist\(\)\), or None.*got a tensor \[1\]"),
    (with_segment(rows=(True, False)), TypeError, r"segments\[0\].rows must be a tuple of ints.*got \(True, False\)"),
    (with_segment(rows=(0, 2)), ValueError, r"segments\[0\].rows must be different rows of 0 to 1; got \(0, 2\)"),
    (with_segment(rows=(1, 1)), ValueError, r"segments\[0\].rows must be different rows of 0 to 1; got \(1, 1\)"),
    ({"own_start": 0}, TypeError, r"own_start must be a tensor \[B\]; got int"),
    ({"own_start": torch.zeros(3, dtype=torch.int64)}, ValueError, r"own_start must be \[B\] = \[2\]; got \[3\]"),
    ({"own_start": torch.zeros(2)}, TypeError, "own_start must be int64 or int32; got torch.float32"),
    ({"own_start": torch.tensor([0, 4])}, ValueError, r"own_start must be counts of own columns, 0 to 3; got \[0, 4\]"),
    ({"own_start": torch.tensor([-1, 0])}, ValueError, "own_start must be counts of own columns"),
    (
        {"own_start": torch.zeros(2, device="meta").int()},
        ValueError,
        "own_start must be on cpu, where query is; got meta",
    ),
    ({"own_length": 3}, TypeError, r"own_length must be a tensor \[B\]; got int"),
    ({"own_length": torch.ones(2, 1).int()}, ValueError, r"own_length must be \[B\] = \[2\]; got \[2, 1\]"),
    ({"own_length": torch.ones(2)}, TypeError, "own_length must be int64 or int32; got torch.float32"),
    ({"own_length": torch.tensor([3, 4])}, ValueError, r"own_length must be .* row's 1 queries, 1 to 3; got \[3, 4\]"),
    ({"own_length": torch.tensor([0, 3])}, ValueError, r"own_length must be .* row's 1 queries, 1 to 3; got \[0, 3\]"),
    ({"own_length": torch.ones(2, device="meta").int()}, ValueError, "own_length must be on cpu, where query is"),
    ({"own_mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"own_mask must be \[B, S\] = \[2, 3\]; got"),
    ({"own_mask": torch.ones(2, 3)}, TypeError, r"own_mask must be bool, True where attended.*mask.bool\(\)"),
    ({"scale": "1"}, TypeError, "scale must be a float or None; got str"),
    ({"scale": float("nan")}, ValueError, "scale must be a finite number; got nan"),
    ({"softcap": 0.0}, ValueError, "softcap must be a finite number above 0; got 0.0"),
    ({"sliding_window": 0}, ValueError, "sliding_window must be an int of 1 or more, or None for no window; got 0"),
    ({"sliding_window": 4.0}, ValueError, "sliding_window must be an int of 1 or more"),
    ({"sinks": torch.zeros(2)}, ValueError, r"sinks must be \[Hq\] = \[4\]; got \[2\]"),
    ({"sinks": torch.zeros(4, dtype=torch.int64)}, TypeError, "sinks must be floating point; got torch.int64"),
    ({"sinks": torch.zeros(4, requires_grad=True)}, RuntimeError, "sinks requires grad.*no backward"),
    ({"alibi_slopes": [0.5] * 4}, TypeError, r"alibi_slopes must be a tensor \[Hq\]; got list"),
    ({"alibi_slopes": torch.zeros(1, 4)}, ValueError, r"alibi_slopes must be \[Hq\] = \[4\]; got \[1, 4\]"),
    ({"alibi_slopes": torch.zeros(4).int()}, TypeError, "alibi_slopes must be floating point; got torch.int32"),
    ({"alibi_slopes": torch.zeros(4, requires_grad=True)}, RuntimeError, "alibi_slopes requires grad.*no backward"),
    ({"backend": "cuda"}, ValueError, "backend must be one of 'auto', 'torch', 'triton'; got 'cuda'"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_refuses_by_name(change, error, message):
    with pytest.raises(error, match=message):
        relay_attention(**(arguments() | change))


@pytest.mark.parametrize(
    ("size", "dtype", "message"),
    [
        (8, torch.float64, "the kernels take float32, bfloat16 and float16, not torch.float64; use backend="),
        (264, torch.float32, "the kernels take head sizes up to 256, not 264; use backend="),
    ],
)
def test_the_kernels_refuse_what_they_cannot_take(size, dtype, message):
    tensor = torch.randn(1, 1, 2, size, dtype=dtype)
    with pytest.raises(RuntimeError, match=message):
        relay_attention(tensor, [], tensor, tensor, backend="triton")


def test_refuses_integers():
    integers = {name: torch.ones(2, 2, 3, 8, dtype=torch.int64) for name in ("query", "key", "value")}
    with pytest.raises(TypeError, match=r"query must be float64, float32, bfloat16 or float16; got torch\.int64"):
        relay_attention(segments=[], **integers)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_accepts_what_fits(backend):
    out = relay_attention(
        **arguments(), own_start=torch.tensor([0, 3], dtype=torch.int32), scale=1, sliding_window=2, backend=backend
    )
    assert out.shape == (2, 1, 4, 6)


def test_counts_on_a_device_are_not_read():
    """A meta tensor has no content: reading it raises."""
    tensors = {name: torch.empty(2, 2, 3, 8, device="meta") for name in ("query", "key", "value")}
    counts = torch.empty(2, dtype=torch.int64, device="meta")
    names = ("own_mask", "scale", "sliding_window", "softcap", "sinks", "alibi_slopes")
    check_arguments(**tensors, segments=[], own_start=counts, own_length=counts, **dict.fromkeys(names))
    plan = ops.Plan(2, 1, 3, own_start=counts, own_length=counts)
    with pytest.raises(RuntimeError, match="meta"):
        plan.queries()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("size", [8, 6])
def test_the_output_is_contiguous(length, size, dtype):
    query, key = torch.randn(2, 4, length, 8).to(dtype), torch.randn(2, 2, 3, 8).to(dtype)
    segment = Segment(key[0], key[0, ..., :size])
    for segments in ([], [segment]):
        assert relay_attention(query, segments, key, key[..., :size]).is_contiguous()


def test_parameters_are_attended_under_no_grad():
    inputs = arguments()
    inputs["key"] = torch.nn.Parameter(inputs["key"])
    with torch.no_grad():
        assert not relay_attention(**inputs).requires_grad


def test_the_unvalidated_entry_refuses_gradients_too():
    inputs = arguments() | {"query": torch.randn(2, 4, 1, 8, requires_grad=True)}
    with pytest.raises(RuntimeError, match="query requires grad"):
        ops.attend(ops.Plan(2, 1, 3, shared_length=5), **inputs, scale=1.0)


def test_examples_of_the_docstrings_run():
    assert doctest.testmod(ops).failed == 0
