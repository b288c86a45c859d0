"""Models of random weights, made on the device, one at a time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from relay_hf.cli.benchmark.timed_model import ModelShape

_built: dict[tuple[ModelShape, torch.device], PreTrainedModel] = {}


def build(shape: ModelShape, device: torch.device) -> PreTrainedModel:
    """The model in bf16 (float32 on a CPU), made where it is to be: copying it there would take longer.

    The last one is kept for the next call; before another is made it is given up, so that no two lie side by side.
    """
    key = (shape, device)
    if key not in _built:
        forget()
        with device, _default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16):
            _built[key] = shape.build()
    return _built[key]


def forget() -> None:
    """Give the model's memory back."""
    if _built:
        _built.clear()
        free()


def free() -> None:
    """Give memory back that nobody refers to any more."""
    gc.collect()  # hooks and what they hook refer to each other
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # of a device that is broken
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
