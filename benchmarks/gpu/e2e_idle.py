"""How much of a decode step the device idles: the kernels of some steps, seen by torch's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import StoppingCriteria

from .store import Record

SKIPPED, STEPS = 3, 24  # steps before the profile, in which graphs may be captured; steps in it
_MOST_KERNELS, _NAME = 12, 80


class _Profile(StoppingCriteria):
    """Profiles the steps of a generate() after its first ones, seen from its stopping criteria: never stops it."""

    def __init__(self) -> None:
        self.profile = profile(activities=[ProfilerActivity.CUDA])
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """End of a step."""
        self.calls += 1
        if self.calls in (1 + SKIPPED, 1 + SKIPPED + STEPS):  # the first is the prefill's
            torch.cuda.synchronize()
            self.profile.start() if self.calls == 1 + SKIPPED else self.profile.stop()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def measure(generate: Callable[[int, StoppingCriteria], object], step_s: float | None) -> Record:
    """Idle share and the longest kernels of a decode step.

    Args:
        generate: generates so many tokens, with a criterion.
        step_s: what a step takes without a profiler, which slows the host.
    """
    with profile(activities=[ProfilerActivity.CUDA]):  # the first of a process loads what it needs
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    seen = _Profile()
    try:
        generate(1 + SKIPPED + STEPS, seen)
    except BaseException:
        with suppress(Exception):  # of one that is not running; a running one would slow all that follows
            seen.profile.stop()
        raise
    events = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in seen.profile.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    return summary(events, STEPS, step_s)


def summary(events: Iterable[tuple[str, float, float]], steps: int, step_s: float | None) -> Record:
    """Of device activities (name, start and end in us) over so many steps.

    `idle_share` is of the span between the first and the last; `idle_share_unprofiled` of a step that takes `step_s`.
    """
    events = list(events)
    if not events:
        raise RuntimeError("the profiler saw no kernel")
    span, busy = span_and_busy((start, end) for _, start, end in events)
    kernels: Counter[str] = Counter()
    for name, start, end in events:
        kernels[name[:_NAME]] += end - start
    found: Record = {
        "steps": steps,
        "step_span_us": span / steps,
        "busy_us": busy / steps,
        "idle_share": 1 - busy / span,
        "launches": len(events) / steps,
        "kernels_us": {name: us / steps for name, us in kernels.most_common(_MOST_KERNELS)},
    }
    if step_s is not None:
        found["idle_share_unprofiled"] = max(0.0, 1 - busy / steps / (1e6 * step_s))
    return found


def span_and_busy(intervals: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """From the first start to the last end; and how much of that any interval covers."""
    ordered = sorted(intervals)
    begin = reached = ordered[0][0]
    busy = 0.0
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return reached - begin, busy
