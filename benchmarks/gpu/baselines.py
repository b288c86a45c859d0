"""What workload K is compared with: flash attention over KV stored once a row, and FlashInfer's cascade."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import flash, flashinfer
from .context import Context, LeftOut
from .workload import Decode

ALL = (flash, flashinfer)
TEXT = {flash.NAME: flash.TEXT, flashinfer.NAME: flashinfer.TEXT}
Time = Callable[[int, Callable[[], Any]], float]


def times(context: Context, shape: Decode, baseline: ModuleType, time: Time) -> dict[str, float | str]:
    """Microseconds of each form of a baseline, or why there are none: whatever it does, our own time stands.

    Args:
        context: device and arena.
        shape: what is timed.
        baseline: one of `ALL`.
        time: seconds of a call, from the bytes of its buffers and what makes it.
    """
    found: dict[str, float | str] = {}
    for name, (bytes_, make) in baseline.forms(context, shape).items():
        if context.broken_by is not None:
            found[name] = f"the device refuses calls since {context.broken_by}"
        elif not context.arena.fits(bytes_):
            found[name] = "does not fit"
        else:
            try:
                found[name] = 1e6 * time(bytes_, make)
            except LeftOut as reason:
                found[name] = str(reason)
            except Exception as error:
                found[name] = f"failed: {_said(error)}"
                context.probe(f"{baseline.NAME} {name}, {shape.key}")
    return found


def _said(error: BaseException) -> str:
    """The message, and that of what it came from: ending a capture that failed fails too."""
    text = f"{type(error).__name__}: {str(error)[:200]}"
    return f"{text}; from {_said(error.__context__)}" if error.__context__ is not None else text
