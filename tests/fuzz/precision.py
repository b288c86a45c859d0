"""float64 without a float32 inside, so that rounding decides nothing; and deprecations as errors."""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any
from unittest import mock

import torch
from transformers.utils import logging as transformers_logging

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# Where Transformers names float32: norms, softmax, rotary angles, routers, the logits that generate() processes. In a
# float64 model each of them rounds to float32, and what differs by 1e-16 before it can differ by 1e-7 after it.
_METHODS = ("to", "type", "softmax", "sum", "mean", "cumsum")
_FUNCTIONS = (
    (torch.nn.functional, ("softmax", "log_softmax", "normalize")),
    (torch, ("softmax", "log_softmax", "sum", "mean", "cumsum")),
)


@contextmanager
def float64_only() -> Iterator[None]:
    """Let the calls that ask for float32 have float64. It is stock's and the patched model's arithmetic alike."""
    with ExitStack() as stack:
        for name in _METHODS:
            stack.enter_context(_replaced(torch.Tensor, name, _widened(getattr(torch.Tensor, name))))
        stack.enter_context(_replaced(torch.Tensor, "float", torch.Tensor.double))
        for namespace, names in _FUNCTIONS:
            for name in names:
                stack.enter_context(_replaced(namespace, name, _widened(getattr(namespace, name))))
        yield


def _replaced(owner: Any, name: str, function: Any) -> Any:
    # mock.patch.object deletes what it set where the attribute was inherited, as torch.Tensor's are from a C type.
    return mock.patch.object(owner, name, function)


def _widened(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # by its name PyTorch hands it to a subclass of tensors
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        elif len(args) > 1 and torch.float32 in [arg for arg in args[1:] if isinstance(arg, torch.dtype)]:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return function(*args, **kwargs)

    return call


class _RaiseOnDeprecation(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message.lower() or "will be removed" in message.lower():
            raise DeprecationWarning(message)


@contextmanager
def deprecations_raise() -> Iterator[None]:
    """Deprecations raise, whether said through `warnings` or through Transformers' logger; the rest is mute."""
    logger, relays = transformers_logging.get_logger("transformers"), logging.getLogger("relay_hf")
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(logger, "handlers", [_RaiseOnDeprecation()]))
        stack.enter_context(mock.patch.object(relays, "disabled", True))  # its reports have all that it says
        stack.enter_context(redirect_stdout(io.StringIO()))  # some models print
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("error", category=category, module="(?!torch)")
        yield


@contextmanager
def arithmetic(dtype: str) -> Iterator[None]:
    """What a case runs in."""
    with ExitStack() as stack:
        stack.enter_context(deprecations_raise())
        if dtype == "float64":
            stack.enter_context(float64_only())
        yield
