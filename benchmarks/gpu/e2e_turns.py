"""Contenders of a cell take turns: a warm-up each, then rounds, until the time is over; what fails is noted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import StoppingCriteria

from . import e2e_idle, models
from .context import Context
from .e2e_contenders import CONTENDERS, E2EBench
from .e2e_first import Clock
from .store import Record

OUT_OF_TIME = "out of time"
_WARM_UP, _PROFILE = -1, -2  # draws of own tokens; rounds have theirs, the same for whoever is measured apart
_REPORTED = ("relayed", "kv_bytes", "kv_bytes_reserved", "kv_bytes_stock", "graph_steps", "graph_bytes", "graph_reason")


class Turns:
    """Measures contenders of a bench.

    Args:
        context: clock and device.
        bench: what they run on.
        record: of the cell; `contenders` is filled, `runs` is the number of this run.
        save: called when an entry has changed.
    """

    def __init__(self, context: Context, bench: E2EBench, record: Record, save: Callable[[], None]) -> None:
        self._context, self._bench, self._save = context, bench, save
        self._entries: dict[str, Record] = record["contenders"]
        self._run: int = record["runs"]
        self._tokens: dict[str, list[Tensor]] = {}
        self._started = 0.0  # the call that is timed, of `time.perf_counter`

    def measure(self, names: Sequence[str], rounds: int, deadline: float) -> None:
        """Warm each of them up, then time them in turn, `rounds` times, or fewer until `deadline`.

        `deadline` is of `time.monotonic`; who is warm has a first round after it too, if the section has the time.
        Every round has other own tokens, the same in each call of this, and starts with another contender; each
        generates all new tokens, and one only. After the rounds, the relay's decode step is profiled.
        """
        self._bench.draw(_WARM_UP)
        alive = [name for name in names if self._in_time(name, deadline) and self._attempt(name, self._warm_up)]
        for turn in range(rounds):
            until = deadline if turn else self._context.deadline
            shift = turn % max(1, len(alive))
            order = [*alive[shift:], *alive[:shift]]
            self._bench.draw(2 * turn)
            lasting = [each for each in order if self._in_time(each, until) and self._attempt(each, self._all)]
            self._bench.draw(2 * turn + 1)  # or the relay would have a single row's own tokens, too
            alive = [
                name
                for name in alive
                if name in lasting and (not CONTENDERS[name].first_token or self._attempt(name, self._first))
            ]
            self._summarize(names)
        kept = self._entries.get("relay-kept", {}) if "relay-kept" in names else {}
        in_time = time.monotonic() < self._context.deadline and self._context.broken_by is None
        if "step_s" in kept and "ended_by" not in kept and in_time and not self._context.dry_run:
            self._profile(kept)
            self._save()

    def _warm_up(self, name: str) -> None:
        needed, free = self._bench.bytes.kv(name, self._bench.workload), self._context.free_bytes()
        if needed > free:
            self._entries[name] = {"does_not_fit": f"KV of {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"}
            return
        self._entries[name] = {"run": self._run, "seconds": [], "first_token_seconds": []}
        peak = self._context.peak_bytes  # forgets what was before
        peak()
        seconds, _ = self._time(name)
        self._entries[name] |= {"warm_up_s": seconds, "peak_bytes": peak()}  # s: with what is compiled and captured

    def _all(self, name: str) -> None:
        seconds, tokens = self._time(name)
        entry, contender = self._entries[name], CONTENDERS[name]
        entry["seconds"].append(seconds)
        self._tokens.setdefault(name, []).append(tokens.cpu())
        if contender.twin is not None:
            report = contender.twin(self._bench).relay.last
            entry |= {field: getattr(report, field, None) for field in _REPORTED} | {"report": repr(report)}

    def _first(self, name: str) -> None:
        entry, clock = self._entries[name], Clock()
        self._bench.streamer = clock.streamer if self._bench.workload.rows == 1 else None  # it takes no more
        try:
            with self._bench.asking(1):
                seconds, _ = self._time(name)
        finally:
            self._bench.streamer = None
        entry["first_token_seconds"].append(seconds)
        if clock.read_at is not None:
            entry.setdefault("first_shown_seconds", []).append(clock.read_at - self._started)

    def _time(self, name: str) -> tuple[float, Tensor]:
        call = CONTENDERS[name].prepare(self._bench)
        self._context.clock.synchronize()
        self._started = time.perf_counter()
        tokens = call()
        return time.perf_counter() - self._started, tokens

    def _attempt(self, name: str, do: Callable[[str], None]) -> bool:
        """Whether `name` can go on after `do`."""
        try:
            do(name)
        except torch.OutOfMemoryError as error:
            self._give_up(name, "does_not_fit", f"torch.OutOfMemoryError: {' '.join(str(error).split())[:200]}")
        except Exception as error:  # the others go on: what failed is in the record and in the summary
            self._give_up(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            self._context.probe(name)
        going_on = "seconds" in self._entries[name] and "ended_by" not in self._entries[name]
        if not going_on:
            models.free()  # here, where the error and what its frames held are gone
            self._save()
        return going_on

    def _give_up(self, name: str, how: str, why: str) -> None:
        if self._entries.get(name, {}).get("seconds"):
            self._entries[name]["ended_by"] = why  # what it has is right
        else:
            self._entries[name] = {how: why}

    def _in_time(self, name: str, deadline: float) -> bool:
        why = OUT_OF_TIME if time.monotonic() >= deadline else None
        if self._context.broken_by is not None:
            why = f"the device refuses calls since {self._context.broken_by}"
        if why is not None and not self._entries.get(name, {}).get("seconds"):
            self._entries[name] = {"left_out": why}
            self._save()
        return why is None

    def _summarize(self, names: Sequence[str]) -> None:
        for name in names:
            entry = self._entries[name]
            if entry.get("seconds"):
                entry |= figures(entry["seconds"], entry["first_token_seconds"], self._bench.workload.new)
                if "first_shown_seconds" in entry:
                    entry["first_shown_s"] = statistics.median(entry["first_shown_seconds"])
                entry["tokens_per_second"] = self._bench.workload.rows * self._bench.workload.new / entry["total_s"]
                if name != "stock" and CONTENDERS[name].same_prompts and "stock" in self._tokens:
                    entry["tokens"] = compared(self._tokens[name], self._tokens["stock"])
        self._save()

    def _profile(self, entry: Record) -> None:
        def generate(new: int, criterion: StoppingCriteria) -> None:
            with self._bench.asking(new):
                CONTENDERS["relay-kept"].prepare(self._bench)
                self._bench.generate(self._bench.twin, self._bench.prompts, stopping_criteria=[criterion])

        self._bench.draw(_PROFILE)
        try:
            entry["device"] = e2e_idle.measure(generate, entry.get("step_s"))
        except Exception as error:
            entry["device"] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            self._context.probe("the profiler")


def figures(seconds: Sequence[float], first_token_seconds: Sequence[float], new: int) -> Record:
    """Medians over the rounds; a decode step is what the tokens after the first take, each."""
    found: Record = {"rounds": len(seconds), "total_s": statistics.median(seconds)}
    if first_token_seconds:
        first = statistics.median(first_token_seconds)
        found |= {"first_token_s": first, "step_s": (found["total_s"] - first) / (new - 1)}
    return found


def compared(tokens: Sequence[Tensor], stock: Sequence[Tensor]) -> Record:
    """Share of equal tokens, of equal rows, and the median place of the first difference (in bf16, ties are broken)."""
    differs = torch.cat([mine != theirs for mine, theirs in zip(tokens, stock, strict=False)])
    rows = differs.any(dim=1)
    first = differs.int().argmax(dim=1)[rows]
    return {
        "equal_tokens": 1 - differs.float().mean().item(),
        "equal_rows": 1 - rows.float().mean().item(),
        "first_difference": first.median().item() if len(first) else None,
    }
