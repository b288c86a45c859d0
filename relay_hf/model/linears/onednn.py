"""oneDNN's linear operator: whether this PyTorch has it, whether it is right, and how much faster it is here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# The least ratio of PyTorch's time to oneDNN's for which oneDNN is used. Its rounding is another one than MKL's, so a
# tie is no reason to use it. On an AMD EPYC this measurement gives 1.8.
FASTER = 1.25

# oneDNN makes code for each number of rows, which takes 0.4 to 0.7 ms, and keeps that of 1,024 products. Prompts have
# ever new lengths, so rows are padded to a multiple of a step, by what they exceed. 1,200 random lengths up to 1,500
# through five weights take 22.3 s and 0.2 GB so, unpadded 48.8 s and 1.2 GB, by MKL 38.5 s.
_PADDED_TO = ((1024, 256), (256, 64), (64, 16))

_SINGLE = ("ieee", "none")  # PyTorch's settings under which products in float32 are not rounded to less
_SIZE = 768  # of the square weight that is timed: 2.4 MB, as of a small model's projections
_ROWS = (16, 128)  # a decode step of some rows, and a prefill
_REPEATS = 5  # of which the fastest counts: other work can only slow a run down
_SHAPES = ((1, 8, 6), (5, 24, 17), (70, 64, 40))  # rows, inputs and outputs of the products that are checked
_lock = threading.Lock()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` by oneDNN: x `[..., inputs]`, weight `[outputs, inputs]`, both float32 on a CPU.

    The operator ignores autocast and computes wrong gradients without an error, so callers must rule both out.
    """
    inputs, outputs = x.shape[-1], len(weight)
    rows = x.numel() // inputs if inputs else 0
    step = next((step for least, step in _PADDED_TO if rows > least), 1)
    if rows % step == 0:
        return _product(x, weight, bias)
    padded = functional.pad(x.reshape(rows, inputs), (0, 0, 0, -rows % step))
    return _product(padded, weight, bias)[:rows].view(*x.shape[:-1], outputs)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def is_single_precision() -> bool:
    """Whether PyTorch's settings let oneDNN multiply float32 as it is, and not rounded to less."""
    settings: Any = torch.backends.mkldnn
    enabled: bool = torch._C._get_mkldnn_enabled()
    return bool(settings.is_available()) and enabled and settings.matmul.fp32_precision in _SINGLE


@lru_cache(maxsize=1)
def fault() -> str | None:
    """Why the operator can't be used in this process, in words; None if it can. It is tried once."""
    try:
        with torch.no_grad():
            wrong = [shape for shape in _SHAPES if not _is_right(*shape)]
    except Exception as error:  # the operator is internal to PyTorch, and may be anything in another version
        return f"oneDNN's operator of this PyTorch can't be used: {type(error).__name__}"
    return f"oneDNN's operator of this PyTorch is wrong for the shapes {wrong}" if wrong else None


def speedup(threads: int) -> float:
    """How many times as fast as PyTorch's own linear the operator is at least, in this process with `threads` threads.

    It is measured once, which takes 10 to 20 ms.
    """
    with _lock:  # two threads that measure at the same time would slow each other down
        return _measured(threads)


@lru_cache(maxsize=16)
def _measured(threads: int) -> float:
    weights = [_numbers(_SIZE, _SIZE) for _ in range(2)]

    def seconds(compute: Callable[[Tensor, Tensor, None], Tensor], x: Tensor, weight: Tensor) -> float:
        start = time.perf_counter()
        compute(x, weight, None)
        return time.perf_counter() - start

    ratios = []
    with torch.no_grad():
        for rows in _ROWS:
            x, best = _numbers(rows, _SIZE), [float("inf"), float("inf")]
            for turn in range(2 * (_REPEATS + 1)):
                which = turn % 2
                taken = seconds((functional.linear, linear)[which], x, weights[turn // 2 % 2])
                if turn > 1:  # the first run of each makes its primitives
                    best[which] = min(best[which], taken)
            ratios.append(best[0] / best[1])
    return min(ratios)


def _is_right(rows: int, inputs: int, outputs: int) -> bool:
    """Whether products of plain, strided and transposed operands are as near to float64's as float32 can be."""
    weight, bias = _numbers(outputs, inputs), _numbers(1, outputs)[0]
    x, transposed, wider = _numbers(rows, inputs), _numbers(inputs, outputs).T, _numbers(2 * rows, 1, inputs)[::2]
    for x_, weight_, bias_ in ((x, weight, None), (x, weight, bias), (wider, weight, bias), (x, transposed, bias)):
        exact = functional.linear(x_.double(), weight_.double(), None if bias_ is None else bias_.double())
        found = linear(x_, weight_, bias_)
        if found.shape != exact.shape or not torch.allclose(found.double(), exact, rtol=1e-5, atol=1e-5):
            return False
    return True


def _numbers(*shape: int) -> Tensor:
    """Numbers between -1 and 1. A generator of random numbers is the caller's, and must not move."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float32, device="cpu")
    return torch.sin(count * 1.7).view(shape)
