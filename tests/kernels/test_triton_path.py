"""The Triton kernels, in Triton's interpreter, against the reference in float64 and against stock attention's error."""

from itertools import cycle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_hf.kernels import reference
from tests.support.sweeps import swept

from .cases import WINDOWS, Case

# Root mean square error over that of eager attention in the same dtype. In half precision eager attention rounds the
# scores, which the kernels do not: they measure 0.3 to 0.8. In float32 the order of sums decides: 0.5 to 2.0, median
# 0.9. The interpreter cuts off what a cast to bfloat16 should round, which is twice the error: 0.5 to 2.2.
FACTOR = {torch.float32: 2.0, torch.bfloat16: 2.0, torch.float16: 1.0}

HEAD_SIZES = [{"D": size, "P": (37,), "S": 5, "G": 3, "H": 1} for size in (64, 80, 96, 112, 128, 160, 192, 256)]
VALUE_SIZES = [{"D": d, "Dv": dv, "P": (37,), "S": 5} for d, dv in ((192, 128), (64, 80), (24, 17), (8, 5), (100, 64))]
GROUPS = [{"G": group, "H": 2, "D": 32, "P": (21,), "S": 3, "B": 3} for group in range(1, 17)]
SHAPES = [
    {"P": ()},
    {"P": (0,), "T": 3},
    {"P": (), "S": 1, "B": 1},
    {"P": (1,), "S": 1, "B": 1},
    {"P": (17,), "S": 300, "B": 1, "H": 1},
    {"P": (300, 270), "H": 1},
    {"P": (9,), "S": 390, "B": 1, "H": 1, "G": 5, "T": 3},
    {"P": (1025,), "S": 33, "G": 7, "H": 1, "D": 100, "B": 2},
    {"P": (111,), "S": 7, "T": 5, "G": 8, "H": 1, "D": 80},
    {"P": (33,), "S": 24, "T": 21, "G": 3, "H": 1},
    {"P": (63,), "S": 45, "T": 45, "G": 3, "B": 3},
    {"P": (63,), "S": 140, "T": 130, "G": 1, "H": 1, "D": 24, "Dv": 16},
    {"P": (20, 9, 4), "B": 5, "rows": (None, (0, 2, 3), (4, 1)), "G": 2},
    {"P": (9, 20, 0, 7), "B": 5, "T": 4, "rows": ((4, 0), (), (1,), None), "G": 2},
    {"P": (9, 20, 0, 7), "B": 3, "S": 70, "T": 70, "rows": ((2, 0), (), (1,), None)},
]
HUGE = [5000, 2**31 - 1, 2**63 - 1]  # windows that nothing is out of, up to where 32 and 64 bits end
# Each shape with each window up to 30, and with one of the huge ones. The sweep has the other two.
WITH_WINDOWS = [
    *((shape, window) for shape in SHAPES for window in WINDOWS if window not in HUGE),
    *zip(SHAPES, cycle(HUGE), strict=False),
    *swept((shape, window) for i, shape in enumerate(SHAPES) for window in HUGE if window != HUGE[i % 3]),
]


@pytest.fixture(autouse=True)
def poison():
    """Tensors that are made and not filled hold NaN: what a kernel forgets to write, or reads too early, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check(case, **options):
    """The kernels' error is within the factor of eager attention's, and padding's queries are finite."""
    own_length = options.get("own_length")
    out = (case if own_length is None else case.poisoned(own_length)).run(backend="triton", **options)
    exact = case.exact(**options)
    assert out.shape == exact.shape
    assert out.dtype is case.query.dtype
    assert out.isfinite().all()
    real = torch.ones(())
    if options.get("own_start") is not None:
        real = case.real(options["own_start"], own_length)
    eager = reference.relay_attention(case.query, case.segments, case.key, case.value, **options)
    error, eager_error = ((each.double() - exact) * real for each in (out, eager))
    # A few outputs that eager attention happens to hit are no measure: then it is the rounding of the result or, in
    # float32, that of the largest score, which moves the result by that times the values' size.
    # In bfloat16 the interpreter cuts off weights and result, each by up to an eps.
    floor = torch.finfo(out.dtype).eps * exact.abs().max() * (4 if out.dtype is torch.bfloat16 else 1)
    if out.dtype is torch.float32:
        keys = [case.key, *(segment.key for segment in case.segments if segment.length)]
        largest = max(float(key.double().norm(dim=-1).max()) for key in keys) * float(
            case.query.double().norm(dim=-1).max()
        )
        score = abs(options.get("scale") or case.query.shape[3] ** -0.5) * largest
        values = [case.value, *(segment.value for segment in case.segments if segment.length)]
        floor = torch.finfo(out.dtype).eps * max(1.0, score) * max(float(value.abs().max()) for value in values)
    assert error.square().mean().sqrt() <= FACTOR[out.dtype] * eager_error.square().mean().sqrt() + floor / 4
    assert error.abs().max() <= 2 * FACTOR[out.dtype] * eager_error.abs().max() + floor


@pytest.mark.parametrize("dtype", FACTOR, ids=str)
@pytest.mark.parametrize("shape", [*HEAD_SIZES, *VALUE_SIZES, *GROUPS, *SHAPES], ids=str)
def test_equals_reference(shape, dtype):
    check(Case(**shape, dtype=dtype, seed=1))


@pytest.mark.parametrize(("shape", "window"), WITH_WINDOWS, ids=str)
def test_features_equal_reference(shape, window):
    case = Case(**shape, dtype=torch.float32, seed=2)
    batch, columns, length = case.key.shape[0], case.key.shape[2], case.query.shape[2]
    own_length = columns - torch.arange(batch) % (columns - length + 1)
    options = {
        "sliding_window": window,
        "own_start": torch.arange(batch) % own_length.min(),
        "own_length": own_length.int(),
        "own_mask": torch.rand(batch, columns, generator=case.generator) < 0.7,
        "sinks": case.randn(case.query.shape[1], dtype=torch.float32),
    }
    check(case, **options)
    check(case, **{name: options[name] for name in ("sliding_window", "own_start")}, softcap=0.7)
    check(case, **{name: options[name] for name in ("sliding_window", "own_length", "sinks")}, scale=-0.3)


def any_combination(dtype, draw):
    length = draw(st.sampled_from([1, 1, 1, 2, 3, 7, 35]))
    # A program for each query merges its parts, one after the other: with 35 tokens a row, two rows are enough.
    batch = draw(st.integers(1, 4 if length < 35 else 2))
    columns = length + draw(st.integers(0, 20))
    lengths = draw(st.lists(st.integers(0, 40), max_size=3))
    subset = st.none() | st.lists(st.integers(0, batch - 1), unique=True)
    case = Case(
        B=batch, H=draw(st.integers(1, 2)), G=draw(st.integers(1, 3)), D=draw(st.sampled_from([8, 16, 24])),
        Dv=draw(st.sampled_from([None, None, 5, 40])), P=lengths, S=columns, T=length,
        rows=[draw(subset) for _ in lengths], seed=draw(st.integers(0, 99)), dtype=dtype,
    )  # fmt: skip

    def per_row(lowest):
        return st.none() | st.lists(st.integers(lowest, columns), min_size=batch, max_size=batch).map(torch.tensor)

    heads = case.query.shape[1]
    check(
        case,
        own_start=draw(per_row(0)),
        own_length=draw(per_row(length)),
        own_mask=torch.rand(batch, columns, generator=case.generator) < 0.7 if draw(st.booleans()) else None,
        sliding_window=draw(st.none() | st.integers(1, 60)),
        softcap=draw(st.none() | st.floats(0.5, 50.0)),
        sinks=case.randn(heads, dtype=dtype) if draw(st.booleans()) else None,
    )


@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("dtype", FACTOR, ids=str)
@given(data=st.data())
def test_equals_reference_for_any_combination(dtype, data):
    any_combination(dtype, data.draw)


@pytest.mark.sweep
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("dtype", FACTOR, ids=str)
@given(data=st.data())
def test_equals_reference_for_more_combinations(dtype, data):
    any_combination(dtype, data.draw)


def test_extreme_scores():
    """Scores 1e4 apart: the largest takes all, in whatever part it stands, and nothing overflows."""
    for seed in range(4):
        case = Case(B=3, H=1, G=2, P=(40, 9), S=20, dtype=torch.float32, seed=seed)
        check(case, scale=1e4)
        check(case, scale=-1e4, sinks=torch.tensor([1e4, -1e4]))
        check(case, scale=1e4, softcap=3e4)


def test_strides_are_read_not_assumed():
    """Segments of other strides than each other's, cut out of longer ones, misaligned; all last strides."""
    case = Case(B=3, H=2, G=2, D=24, P=(30, 21, 17), S=9, T=2, dtype=torch.float32)
    segments = list(case.segments)

    def replace(i, **tensors):
        segments[i] = type(segments[i])(**{"key": segments[i].key, "value": segments[i].value,
                                           "start": segments[i].start, **tensors})  # fmt: skip

    longer = torch.full((2, 90, 24), float("nan"))
    longer[:, 13:43] = segments[0].key
    replace(0, key=longer[:, 13:43])
    by_token = segments[1].value.transpose(0, 1).contiguous().transpose(0, 1)
    replace(1, value=by_token)
    odd = torch.full((2, 17, 31), float("nan"))
    odd[..., 3:27] = segments[2].key
    replace(2, key=odd[..., 3:27])
    case.segments = segments
    check(case)
    case.key = case.key.transpose(1, 2).contiguous().transpose(1, 2)
    case.value = case.value.transpose(2, 3).contiguous().transpose(2, 3)
    assert case.value.stride(3) != 1
    check(case)
    case.query = case.query.transpose(2, 3).contiguous().transpose(2, 3)
    mask = torch.rand(3, 9, 2, generator=case.generator)[..., 1] < 0.5
    check(case, own_mask=mask, sinks=torch.randn(4).expand(2, 4)[1])


@pytest.mark.parametrize("ends", [(20, 21, 22), (0, 42, 43), (44, 45, 1)])
def test_padding_ends_anywhere_in_a_tile_of_queries(ends):
    """Tiles of the prefill hold 21 and a third of a row's tokens here."""
    case = Case(B=3, H=2, G=3, P=(17,), S=45, T=45, dtype=torch.float32)
    check(case, own_start=torch.tensor(ends))
    check(case, own_start=torch.tensor(ends), sliding_window=5)
