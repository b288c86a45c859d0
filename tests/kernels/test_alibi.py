"""A bias that is linear in the distance: against the reference, its error in low precision, and who computes it."""

import pytest
import torch
import torch.nn.functional as F

from relay_hf import ops
from relay_hf.kernels.plan import Plan
from relay_hf.kernels.triton import backend as triton_backend

from .cases import SHAPES, WINDOWS, Case


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestEqualsReference:
    def test_plain(self, kernel, shape, window):
        case = Case(**shape)
        case.check(sliding_window=window, alibi_slopes=case.slopes())

    def test_left_padding_and_sinks(self, kernel, shape, window):
        case = Case(**shape, seed=1)
        batch, _, columns, _ = case.key.shape
        own_start = torch.randint(0, columns, (batch,), generator=case.generator)
        sinks = case.randn(case.query.shape[1], dtype=torch.float64)
        case.check(sliding_window=window, alibi_slopes=case.slopes(), own_start=own_start, sinks=sinks)

    def test_holes_and_rows_of_different_length(self, kernel, shape, window):
        case = Case(**shape, seed=2)
        batch, _, columns, _ = case.key.shape
        own_length = torch.randint(case.query.shape[2], columns + 1, (batch,), generator=case.generator)
        own_mask = torch.rand(batch, columns, generator=case.generator) < 0.5
        case.check(sliding_window=window, alibi_slopes=case.slopes(), own_length=own_length)
        case.check(sliding_window=window, alibi_slopes=case.slopes(), own_length=own_length, own_mask=own_mask)
        case.check(sliding_window=window, alibi_slopes=case.slopes(), own_mask=torch.zeros_like(own_mask))

    def test_the_softcap_comes_before_the_bias(self, shape, window):
        case = Case(**shape, seed=3)
        case.check(sliding_window=window, alibi_slopes=case.slopes(), softcap=0.7)


def test_slopes_of_zero_change_nothing():
    case = Case(B=3, G=2, T=3, rows=(None, (0, 2)), P=(20, 9))
    with_slopes, without = case.run(alibi_slopes=torch.zeros(4, dtype=torch.float64)), case.run()
    torch.testing.assert_close(with_slopes, without, rtol=0, atol=1e-14)


def test_the_kernels_refuse_slopes_by_name():
    case = Case(dtype=torch.float32, P=())
    slopes = case.slopes().float()
    with pytest.raises(RuntimeError, match='backend="triton": the kernels take no alibi_slopes; use backend="auto" or'):
        case.run(backend="triton", alibi_slopes=slopes)
    with pytest.raises(RuntimeError, match="the kernels take no alibi_slopes"):
        ops.attend(Plan(2, 1, 7), case.query, [], case.key, case.value, backend="triton", alibi_slopes=slopes)


@pytest.fixture
def gpu(monkeypatch):
    """A device that the kernels would run on, if it were there."""
    ops._kernels_refusal.cache_clear()
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield torch.device("cuda")
    ops._kernels_refusal.cache_clear()


def test_auto_leaves_slopes_to_torch_on_a_gpu(gpu):
    assert ops.resolve_backend("auto", gpu, torch.bfloat16, 64) == "triton"
    assert ops.resolve_backend("auto", gpu, torch.bfloat16, 64, alibi=True) == "torch"
    assert ops.resolve_backend("torch", gpu, torch.bfloat16, 64, alibi=True) == "torch"
    with pytest.raises(RuntimeError, match='backend="triton": the kernels take no alibi_slopes'):
        ops.resolve_backend("triton", gpu, torch.bfloat16, 64, alibi=True)


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_a_call_asks_for_a_backend_that_takes_its_slopes(name, monkeypatch):
    asked = []
    monkeypatch.setattr(ops, "resolve_backend", lambda *given, **options: asked.append(options) or "torch")
    case = Case()
    case.run(backend=name, alibi_slopes=case.slopes())
    case.run(backend=name)
    assert asked == [{"alibi": True}, {"alibi": False}]


def stock(case, slopes, own_start, window):
    """Stock attention in the case's dtype, with one bias per key, by its distance from the last one, as MPT has it."""
    batch, _, length, _ = case.query.shape
    key, value = (
        torch.cat([*(getattr(s, name).expand(batch, -1, -1, -1) for s in case.segments), getattr(case, name)], dim=2)
        for name in ("key", "value")
    )
    total, shared = key.shape[2], key.shape[2] - case.key.shape[2]
    columns, padding = torch.arange(total), own_start[:, None, None]
    queries = columns[total - length :, None]
    distance = queries - torch.where(columns < shared, columns + padding, columns)
    visible = (distance >= 0) & (distance < window) & ((columns < shared) | (columns >= shared + padding))
    keys = columns + torch.where(columns < shared, own_start[:, None], 0) - (total - 1)
    bias = slopes.float()[:, None, None] * keys[:, None, None]
    mask = bias.masked_fill(~visible[:, None], float("-inf"))
    return F.scaled_dot_product_attention(case.query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


# As over parts without a bias: tests/kernels/test_torch_path.py.
FACTOR = {torch.float32: 2.5, torch.bfloat16: 1.5, torch.float16: 1.5}


@pytest.mark.parametrize("dtype", FACTOR, ids=str)
@pytest.mark.parametrize("window", [5000, 150])
@pytest.mark.parametrize(
    "shape",
    [
        {"B": 5, "H": 3, "D": 64, "P": (63,), "S": 7, "G": 3},
        {"B": 5, "H": 8, "D": 80, "P": (1025, 111), "S": 33},
        {"B": 2, "H": 8, "D": 64, "P": (111,), "S": 257, "T": 257},
        {"B": 5, "H": 2, "D": 24, "Dv": 16, "P": (111,), "S": 33, "T": 5, "G": 4},
    ],
    ids=str,
)
def test_error_is_within_a_factor_of_stocks(shape, window, dtype):
    errors, stock_errors = [], []
    for seed in range(3):
        case = Case(**shape, dtype=dtype, seed=seed)
        slopes, own_start = case.slopes().to(dtype), torch.arange(case.key.shape[0])
        exact = case.exact(alibi_slopes=slopes, own_start=own_start, sliding_window=window)
        out = case.run(alibi_slopes=slopes, own_start=own_start, sliding_window=window)
        real = case.real(own_start)
        errors.append(((out.double() - exact) * real).flatten())
        stock_out = stock(case, slopes, own_start, window).double()
        stock_errors.append(((stock_out - exact) * real).nan_to_num().flatten())
    error, stock_error = torch.cat(errors), torch.cat(stock_errors)
    assert error.square().mean().sqrt() <= FACTOR[dtype] * stock_error.square().mean().sqrt()
    assert error.abs().max() <= 2 * FACTOR[dtype] * stock_error.abs().max()
