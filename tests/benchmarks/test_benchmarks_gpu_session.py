"""How the GPU benchmark runs its checks of whole calls, and that one which fails is told."""

import io
import os
import time
from itertools import pairwise

import pytest
from rich.console import Console

from benchmarks.gpu import generate, session
from benchmarks.gpu.context import Context
from benchmarks.gpu.store import Store
from benchmarks.gpu.workers import Workers

pytestmark = pytest.mark.sweep  # dry runs of whole sections

IDENTITY = {"chip": "x", "versions": {}, "commit": "c", "source": "s", "dry_run": False}


def test_a_wrong_call_is_printed_and_makes_the_exit_status_1(tmp_path):
    store, out = Store(tmp_path / "a.json", IDENTITY), io.StringIO()
    store.put("generate", "llama, greedy", {"passed": True, "wrong": [], "calls": []})
    assert session.summarize(store, Console(file=out, width=160)) == 0
    wrong = [f"call {i}: 3 of 4 rows are not stock's" for i in range(14)]
    store.put("generate", "gpt2, beams", {"passed": False, "wrong": wrong, "calls": []})
    assert session.summarize(store, Console(file=out, width=160)) == 1
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "generate: gpt2, beams: call 0: 3 of 4 rows are not stock's" in lines
    assert "generate: 2 more that are wrong, in the file" in lines
    (verdict,) = [line for line in lines[-30:] if line.startswith("generate(): stock's tokens, relayed and replayed")]
    assert verdict.endswith("missed 1 of 2, 0 left out; failed: gpt2, beams")


class Asked(Workers):
    """Workers that note what they are asked for."""

    def __init__(self):
        self.asked = []

    def run(self, tasks, deadline, at_once=None):
        self.asked.append(([key for _, key in tasks], at_once))
        return ((task, {"passed": True}) for task in tasks)


def test_what_fills_the_device_runs_by_itself_behind_all_others(tmp_path):
    store, workers = Store(tmp_path / "a.json", IDENTITY), Asked()
    context = Context(dry_run=True)
    context.dry_run = False
    session.run_section("generate", context, store, workers, time.monotonic() + 60, print)
    (together, many), alone = workers.asked
    assert many is None
    assert alone == ([*generate.ALONE], 1)
    assert {*together, *generate.ALONE} == generate.cells(dry_run=False).keys() == store.cells("generate").keys()
    assert generate.ALONE.isdisjoint(together)


def busy():
    """What runs a task in a worker: it waits until two are there, then works for a while, and says when."""

    def attempt(folder, count):
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < 2:
            pass
        start = time.monotonic()
        sum(range(count))
        return {"start": start, "end": time.monotonic()}

    return attempt


def test_workers_run_as_many_tasks_at_once_as_they_are_told(tmp_path):
    workers, deadline = Workers(2, busy), time.monotonic() + 120
    try:
        assert len(list(workers.run([(tmp_path, 0)] * 2, deadline))) == 2, "both are there"
        done = [record for _, record in workers.run([(tmp_path, 3_000_000)] * 4, deadline, at_once=1)]
    finally:
        workers.stop()
    done.sort(key=lambda record: record["start"])
    assert len(done) == 4
    assert all(before["end"] <= after["start"] for before, after in pairwise(done))
