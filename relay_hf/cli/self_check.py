"""The self-check: compares each backend of attention with the reference, and a patched generate() with stock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import relay_hf
from relay_hf.kernels import reference
from relay_hf.kernels.segment import Segment
from relay_hf.ops import relay_attention, resolve_backend
from relay_hf.testing import prompts, tiny_model

# Times the error of stock attention in the same dtype. In float32 the order of sums decides.
_FACTOR = {torch.float32: 2.5, torch.bfloat16: 1.5, torch.float16: 1.5}
_ROUNDING = 1e-12  # in float64, of values about 1
# Shared tokens by segment, own columns, queries a row: a decode step, one over two segments, a prefill.
_SHAPES = (((130,), 17, 1), ((65, 33), 9, 1), ((70,), 40, 40))
_NEW_TOKENS = 16


@dataclass(frozen=True)
class Check:
    """The result of one check: its name, whether it passed, the figures, seconds."""

    name: str
    passed: bool
    detail: str
    seconds: float


class CheckFailed(Exception):
    """A computation is wrong; the message has the figures."""


def self_check(device: torch.device) -> Iterator[Check]:
    """Runs every check of a device, one after the other."""
    yield _run("torch path, float64", partial(_exact, device))
    for dtype in _FACTOR:
        yield _run(f"torch path, {_name(dtype)}", partial(_near, device, dtype, "torch"))
    for dtype in _triton_dtypes(device):
        yield _run(f"Triton kernels, {_name(dtype)}", partial(_near, device, dtype, "triton"))
    yield _run("patched generate()", partial(_generate, device))


def _triton_dtypes(device: torch.device) -> list[torch.dtype]:
    """The dtypes that the kernels take on a device."""
    # Triton's interpreter, which replaces a GPU on a CPU, truncates in a cast to bfloat16, where it should round.
    dtypes = [dtype for dtype in _FACTOR if device.type == "cuda" or dtype is not torch.bfloat16]
    try:
        return [dtype for dtype in dtypes if resolve_backend("triton", device, dtype) == "triton"]
    except RuntimeError:
        return []


def _run(name: str, check: Callable[[], str]) -> Check:
    start = time.perf_counter()
    try:
        passed, detail = True, check()
    except CheckFailed as error:
        passed, detail = False, str(error)
    except Exception as error:  # after any error the other checks run
        passed, detail = False, f"{type(error).__name__}: {error}".splitlines()[0]
    return Check(name, passed, detail, time.perf_counter() - start)


def _exact(device: torch.device) -> str:
    largest = 0.0
    for number in range(len(_SHAPES)):
        query, segments, key, value = _inputs(number, device, torch.float64)
        own_start = torch.arange(len(query), device=device)
        options: dict[str, Any] = {"own_start": own_start, "sliding_window": 60}
        out = relay_attention(query, segments, key, value, backend="torch", **options)
        exact = reference.relay_attention(query, segments, key, value, **options)
        columns = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=device)
        real = (columns >= own_start[:, None])[:, :, None, None]
        largest = max(largest, float(((out - exact) * real).abs().max()))
    figures = f"largest difference to the reference {largest:.1e}, limit {_ROUNDING:.0e}"
    if not largest <= _ROUNDING:  # NaN fails too
        raise CheckFailed(figures)
    return figures


def _near(device: torch.device, dtype: torch.dtype, backend: str) -> str:
    worst = 0.0
    for number in range(len(_SHAPES)):
        query, segments, key, value = _inputs(number, device, dtype)
        wide = [Segment(segment.key.double(), segment.value.double(), segment.start) for segment in segments]
        exact = reference.relay_attention(query.double(), wide, key.double(), value.double())
        out = relay_attention(query, segments, key, value, backend=backend)
        ours, stocks = (_rms(each.double() - exact) for each in (out, _stock(query, segments, key, value)))
        if not ours <= _FACTOR[dtype] * stocks:
            raise CheckFailed(f"error {ours:.1e}, stock attention's {stocks:.1e}, limit {_FACTOR[dtype]} times that")
        worst = max(worst, ours / stocks)
    return f"error at most {worst:.2f} of stock attention's, limit {_FACTOR[dtype]}"


def _generate(device: torch.device) -> str:
    model = tiny_model("llama").to(device)
    inputs = {name: value.to(device) for name, value in prompts(40, (3, 7, 2, 5)).items()}
    asked = {"min_new_tokens": _NEW_TOKENS, "max_new_tokens": _NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    stock = model.generate(**inputs, **asked)
    with relay_hf.patched(model, policy="always"):
        tokens = model.generate(**inputs, **asked)
        report = model.relay.last
    if not report.relayed:
        raise CheckFailed(f"a call that should be relayed was left to stock: {report.reason}")
    if not torch.equal(tokens, stock):
        wrong = int((tokens != stock).any(dim=1).sum())
        raise CheckFailed(f"tokens of {wrong} of {len(tokens)} rows are not stock's; {report!r}")
    replayed = f", {report.graph_steps} steps replayed" if report.graph_steps else ""
    saved = f"{report.prompt_tokens_saved} prompt tokens saved"
    return f"{_NEW_TOKENS} tokens of {len(tokens)} rows are stock's, {saved}, backend {report.backend}{replayed}"


def _inputs(number: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[Segment], Tensor, Tensor]:
    """Query `[3, 4, T, 64]`, segments, key and value `[3, 2, S, 64]`, of a shape."""
    lengths, columns, queries = _SHAPES[number]
    generator = torch.Generator().manual_seed(number)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu").to(device, dtype)

    segments, start = [], 0
    for length in lengths:
        segments.append(Segment(draw(2, length, 64), draw(2, length, 64), start))
        start += length
    return draw(3, 4, queries, 64), segments, draw(3, 2, columns, 64), draw(3, 2, columns, 64)


def _stock(query: Tensor, segments: list[Segment], key: Tensor, value: Tensor) -> Tensor:
    """Stock attention over keys and values concatenated for each row, `[B, T, Hq, D]`."""
    rows, group = len(query), query.shape[1] // key.shape[1]
    keys = torch.cat([*(each.key.expand(rows, -1, -1, -1) for each in segments), key], dim=2)
    values = torch.cat([*(each.value.expand(rows, -1, -1, -1) for each in segments), value], dim=2)
    keys, values = (each.repeat_interleave(group, dim=1) for each in (keys, values))
    length, total = query.shape[2], keys.shape[2]
    visible = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(total - length)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=visible).transpose(1, 2)


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
