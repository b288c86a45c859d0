"""The torch path against the reference in float64, and its error in low precision against that of stock attention."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from relay_hf.kernels import reference
from relay_hf.kernels.plan import Plan
from relay_hf.kernels.segment import Segment
from relay_hf.kernels.torch import backend, decode, partial, plan_views
from relay_hf.kernels.torch.plan_views import own_view, segment_view
from relay_hf.ops import attend

from .cases import SHAPES, WINDOWS, Case


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestEqualsReference:
    def test_plain(self, kernel, shape, window):
        Case(**shape).check(sliding_window=window, scale=0.3)

    def test_left_padding(self, kernel, shape, window):
        case = Case(**shape, seed=1)
        batch, _, length, _ = case.key.shape
        own_start = torch.randint(0, length, (batch,), generator=case.generator)
        case.check(sliding_window=window, own_start=own_start)
        case.check(sliding_window=window, own_start=torch.full((batch,), length - 1))
        case.check(sliding_window=window, own_start=torch.full((batch,), length))

    def test_holes_and_sinks(self, kernel, shape, window):
        case = Case(**shape, seed=2)
        batch, _, length, _ = case.key.shape
        own_mask = torch.rand(batch, length, generator=case.generator) < 0.5
        own_start = torch.randint(0, length, (batch,), generator=case.generator)
        sinks = case.randn(case.query.shape[1], dtype=torch.float64)
        case.check(sliding_window=window, own_mask=own_mask, own_start=own_start)
        case.check(sliding_window=window, own_mask=own_mask, sinks=sinks)
        case.check(sliding_window=window, own_mask=torch.zeros_like(own_mask))
        case.check(sliding_window=window, own_mask=torch.zeros_like(own_mask), sinks=sinks)

    def test_softcap(self, shape, window):
        case = Case(**shape, seed=3)
        case.check(sliding_window=window, softcap=0.7, own_start=torch.arange(case.key.shape[0]) % case.key.shape[2])


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_equals_reference_for_any_combination(data):
    def draw(strategy):
        return data.draw(strategy)

    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    columns = length + draw(st.integers(0, 6))
    lengths = draw(st.lists(st.integers(0, 12), max_size=3))
    subset = st.none() | st.lists(st.integers(0, batch - 1), unique=True)
    case = Case(
        B=batch, H=draw(st.integers(1, 2)), G=draw(st.integers(1, 3)), D=8, Dv=draw(st.sampled_from([8, 8, 5])),
        P=lengths, S=columns, T=length, rows=[draw(subset) for _ in lengths], seed=draw(st.integers(0, 99)),
    )  # fmt: skip

    def per_row(lowest):
        return st.none() | st.lists(st.integers(lowest, columns), min_size=batch, max_size=batch).map(torch.tensor)

    holes = st.lists(st.booleans(), min_size=batch * columns, max_size=batch * columns)
    own_mask = draw(st.none() | holes)
    case.check(
        own_start=draw(per_row(0)),
        own_length=draw(per_row(length)),
        own_mask=None if own_mask is None else torch.tensor(own_mask).view(batch, columns),
        sliding_window=draw(st.none() | st.integers(1, 30)),
        softcap=draw(st.none() | st.floats(0.5, 50.0)),
        sinks=case.randn(case.query.shape[1], dtype=torch.float64) if draw(st.booleans()) else None,
        alibi_slopes=case.slopes() if draw(st.booleans()) else None,
    )


def stock(case, own_start):
    """Stock attention in the case's dtype, over keys and values concatenated for each row."""
    query, batch = case.query, case.query.shape[0]
    key = torch.cat([*(s.key.expand(batch, -1, -1, -1) for s in case.segments), case.key], dim=2)
    value = torch.cat([*(s.value.expand(batch, -1, -1, -1) for s in case.segments), case.value], dim=2)
    length, total, shared = query.shape[2], key.shape[2], key.shape[2] - case.key.shape[2]
    visible = torch.ones(length, total, dtype=torch.bool).tril(total - length)[None]
    columns = torch.arange(total) - shared
    visible = visible & ((columns < 0) | (columns >= own_start[:, None]))[:, None]
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None]).transpose(1, 2)


# Root mean square error over stock's: a half-precision part is rounded once more before the merge, which measures
# 1.25; in float32 the order of sums decides, and measures 1.0 to 1.7. The largest of few errors scatters more.
FACTOR = {torch.float32: 2.5, torch.bfloat16: 1.5, torch.float16: 1.5}


@pytest.mark.parametrize("dtype", FACTOR, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        {"B": 5, "H": 3, "D": 64, "P": (1,), "S": 1},
        {"B": 5, "H": 3, "D": 64, "P": (63,), "S": 7, "G": 3},
        {"B": 5, "H": 2, "D": 80, "P": (111,), "S": 7, "T": 5, "G": 7},
        {"B": 1, "H": 4, "D": 100, "P": (1025,), "S": 33, "G": 8},
        {"B": 5, "H": 2, "D": 64, "P": (1025,), "S": 33, "T": 33, "G": 3},
        {"B": 5, "H": 3, "D": 24, "Dv": 16, "P": (63, 111), "S": 33, "G": 3},
        {"B": 5, "H": 2, "D": 192, "Dv": 128, "P": (111,), "S": 7},
        {"B": 3, "H": 2, "D": 24, "Dv": 16, "P": (111,), "S": 140, "T": 130},
    ],
    ids=str,
)
def test_error_is_within_a_factor_of_stocks(shape, dtype):
    errors, stock_errors = [], []
    for seed in range(3):
        case = Case(**shape, dtype=dtype, seed=seed)
        own_start = torch.arange(case.key.shape[0]) % case.key.shape[2] // 2
        exact, real = case.exact(own_start=own_start), case.real(own_start)
        out = case.run(own_start=own_start)
        assert out.dtype is dtype
        errors.append(((out.double() - exact) * real).flatten())
        stock_errors.append(((stock(case, own_start).double() - exact) * real).flatten())
    error, stock_error = torch.cat(errors), torch.cat(stock_errors)
    assert error.square().mean().sqrt() <= FACTOR[dtype] * stock_error.square().mean().sqrt()
    assert error.abs().max() <= 2 * FACTOR[dtype] * stock_error.abs().max()


@pytest.mark.parametrize("dtype", FACTOR, ids=str)
@pytest.mark.parametrize("more", [{}, {"sliding_window": 20}, {"sliding_window": 150}, {"softcap": 2.0}], ids=str)
def test_error_with_holes_and_sinks_is_within_a_factor_of_eager_attentions(more, dtype):
    """No stock operator has all of these: the reference itself, run in the dtype, is what eager attention does."""
    case = Case(B=5, H=2, G=3, D=80, P=(111, 63), rows=(None, (3, 0, 4)), S=33, T=5, dtype=dtype)
    options = {
        "own_start": torch.tensor([0, 3, 28, 7, 1]),
        "own_mask": torch.rand(5, 33, generator=case.generator) < 0.8,
        "sinks": case.randn(6, dtype=dtype),
    } | more
    exact = case.exact(**options)
    error = case.run(**options).double() - exact
    eager = reference.relay_attention(case.query, case.segments, case.key, case.value, **options)
    eager_error = eager.double() - exact
    assert error.square().mean().sqrt() <= 1.5 * eager_error.square().mean().sqrt()
    assert error.abs().max() <= 2 * eager_error.abs().max()


@pytest.mark.parametrize("length", [1, 3])
def test_groups_of_rows_may_have_segments_of_equal_length_and_start(length):
    case = Case(B=5, P=(20,), S=8, T=length, G=2)
    for rows in ((0, 3), (4, 1), (2,)):
        k, v = case.randn(2, 10, 16, dtype=torch.float64), case.randn(2, 10, 16, dtype=torch.float64)
        case.segments.append(Segment(k, v, 20, rows))
    case.check()
    case.check(sliding_window=15, own_start=torch.tensor([0, 5, 2, 4, 0]))


def test_large_scores_neither_overflow_nor_lose_the_smaller_part():
    case = Case(B=3, P=(40,), S=5)
    case.query *= 100
    case.check()
    case.segments[0].key.mul_(-5)
    case.check()
    case.check(sinks=torch.tensor([300.0, -300.0]).double())


def test_sinks_of_minus_infinity_are_no_sinks():
    case = Case()
    assert torch.equal(case.run(sinks=torch.full((2,), float("-inf"))), case.run())


@pytest.mark.parametrize("length", [1, 4])
def test_keys_outside_the_window_are_not_computed(length):
    """NaN in them would reach the output even with weight 0."""
    case = Case(P=(20, 20), S=8, T=length, B=3)
    own_start = torch.tensor([0, 2, 1])
    window = 12
    expected = case.run(own_start=own_start, sliding_window=window)
    first_query = 40 + 8 - length - 2  # position of the first query of the row with most padding
    case.segments[0].key.fill_(float("nan")), case.segments[0].value.fill_(float("nan"))
    cut = first_query - window + 1 - 20
    case.segments[1].key[:, :cut] = float("nan")
    case.segments[1].value[:, :cut] = float("nan")
    assert torch.equal(case.run(own_start=own_start, sliding_window=window), expected)

    expected = case.run(sliding_window=3)
    assert expected.isfinite().all()
    case.value[:, :, : 8 - length - 2] = float("nan")
    assert torch.equal(case.run(sliding_window=3), expected)


def test_rows_at_one_position_need_no_mask_over_a_cut_segment():
    case = Case(P=(20,), S=8, B=3)
    plan = Plan(3, 1, 8, shared_length=20)
    view = segment_view(plan, case.segments[0], 12, case.query)
    assert (view.first, view.mask, view.empty) == (20 + 7 - 12 + 1, None, None)
    assert segment_view(plan, case.segments[0], 8, case.query) is None
    assert own_view(plan, None, case.query).mask is None


def test_a_plan_is_worked_out_once_for_all_layers(monkeypatch):
    calls = []
    for name in ("build_own", "build_segment"):
        build = getattr(plan_views, name)
        monkeypatch.setattr(plan_views, name, lambda *a, build=build, name=name: calls.append(name) or build(*a))
    own_start = torch.tensor([1, 0, 2])
    plan = Plan(3, 2, 7, shared_length=(26, 20, 26), own_start=own_start)
    for layer in range(6):
        case = Case(B=3, P=(20, 6), S=7, T=2, seed=layer)
        case.segments[1] = Segment(case.segments[1].key, case.segments[1].value, 20, (0, 2))
        window = 9 if layer % 2 else None
        out = attend(plan, case.query, case.segments, case.key, case.value, scale=0.25, sliding_window=window)
        exact = case.exact(own_start=own_start, sliding_window=window, scale=0.25)
        torch.testing.assert_close(out, exact, rtol=0, atol=1e-12)
    assert sorted(calls) == ["build_own"] * 2 + ["build_segment"] * 4


@pytest.mark.parametrize(
    ("module", "name", "window"), [(partial, "fused_part", 15), (decode, "fused", None)], ids=["part", "step"]
)
def test_keys_and_values_are_not_copied(module, name, window, monkeypatch):
    case = Case(B=3, H=2, G=3, P=(20,), S=8, dtype=torch.bfloat16)
    seen = []

    def record(query, key, value, *rest, **options):
        seen.extend((key.untyped_storage().data_ptr(), value.untyped_storage().data_ptr()))
        return compute(query, key, value, *rest, **options)

    compute = getattr(module, name)
    monkeypatch.setattr(module, name, record)
    case.run(own_start=torch.tensor([1, 0, 2]), sliding_window=window)
    tensors = (case.key, case.value, case.segments[0].key, case.segments[0].value)
    assert seen == [tensor.untyped_storage().data_ptr() for tensor in tensors]


def step_taken(case, **options):
    """Whether the call takes the decode step's path; and it is right."""
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "attend_step", lambda *given: taken.append(True) or decode.attend_step(*given))
        case.check(**options)
    return bool(taken)


def test_which_calls_take_the_path_of_a_decode_step():
    ragged, holes = torch.tensor([5, 8, 7, 8, 8]), torch.ones(5, 8, dtype=torch.bool)
    for group in (1, 2):
        case = Case(B=5, G=group, P=(20, 9, 4), S=8, rows=(None, (0, 2, 3), (4, 1)))
        sinks = case.randn(2 * group, dtype=torch.float64)
        assert step_taken(case)
        assert step_taken(case, own_start=torch.tensor([0, 1, 2, 7, 4]), own_length=ragged, sinks=sinks)
        assert step_taken(case, own_mask=holes, sliding_window=50)
        assert not step_taken(case, own_mask=~holes)  # a query that sees nothing of a part
        assert not step_taken(case, own_start=torch.tensor([0, 1, 2, 7, 4]), sliding_window=20)  # a mask on a segment
        assert not step_taken(case, softcap=3.0)
        assert not step_taken(case, alibi_slopes=case.slopes())
    assert not step_taken(Case(T=2))
    assert not step_taken(Case(D=16, Dv=8))


class Copies(TorchDispatchMode):
    """Operations that move what they are given."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.split(".")[0] in ("clone", "copy_", "_to_copy", "cat", "index_select"):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_decode_step_moves_nothing_but_grouped_queries():
    """Own part and segments are merged where the kernel leaves them; a copy would be another pass over them."""
    for group, dtype, copies in ((1, torch.float32, 0), (2, torch.float32, 1), (1, torch.bfloat16, 3)):
        case = Case(B=5, G=group, P=(20,), S=8, dtype=dtype)
        plan = Plan(5, 1, 8, shared_length=20)
        with Copies() as copied:
            out = attend(plan, case.query, case.segments, case.key, case.value)
        assert out.is_contiguous()
        assert len(copied.names) == copies, copied.names


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_any_strides_are_read_right(name):
    case = Case(G=2, D=16)
    transposed = getattr(case, name).transpose(2, 3).contiguous().transpose(2, 3)
    setattr(case, name, transposed)
    assert transposed.stride(-1) != 1 or name == "query"
    case.check()


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (2, 1, 0, 3)])
def test_the_output_is_contiguous_however_queries_lie(order, length):
    for group, dtype in ((1, torch.float64), (2, torch.float64), (2, torch.bfloat16)):
        case = Case(B=3, G=group, T=length, dtype=dtype)
        case.query = case.query.permute(order).contiguous().permute(order)
        assert case.run().is_contiguous()
        if dtype is torch.float64:
            case.check()


def test_autocast_does_not_round_scores():
    case = Case(dtype=torch.float32, P=(111,))
    expected = case.run(softcap=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(case.run(softcap=2.0), expected)


def test_inputs_are_left_as_they_were():
    case = Case(B=3, T=3, rows=((0, 2),), P=(20,))
    before = [t.clone() for t in (case.query, case.key, case.value, case.segments[0].key, case.segments[0].value)]
    case.run(softcap=3.0, sinks=torch.zeros(2).double())
    case.run()
    after = [case.query, case.key, case.value, case.segments[0].key, case.segments[0].value]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
