"""The GPU benchmark and the tuner: dry runs on a CPU, and the rules by which figures are judged."""

import functools
import json
import operator
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu import (
    baselines,
    decode,
    e2e_cells,
    flashinfer,
    generate,
    processes,
    sanitizer,
    verdicts,
    workload,
)
from benchmarks.gpu.context import Context, LeftOut
from benchmarks.gpu.sections import Attempts
from benchmarks.gpu.store import Store
from benchmarks.gpu.workers import DIED, Lost, Workers
from benchmarks.gpu.workload import Ceilings, Decode

ROOT = Path(__file__).parents[2]
H200_LIKE = Ceilings(bandwidth=4e12, matrix_rate=8e14)


def run(module, *options):
    command = [sys.executable, "-m", module, "--dry-run", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.sweep
def test_dry_run_leaves_out_what_has_no_time_then_runs_it_and_then_does_nothing_new(tmp_path):
    path = tmp_path / "gpu.json"
    out = run("benchmarks.gpu", "--minutes", 0, "--out", path)
    none = json.loads(path.read_text())
    assert list(none["sections"]) == ["ceilings", "correctness", "generate", "sanitizer", "operator", "gate", "e2e"]
    for name, section in none["sections"].items():
        assert section["cells"] == {}
        assert set(section["left_out"].values()) == {"out of time"}
        assert f"{name}: left out, out of time" in out

    out = run("benchmarks.gpu", "--out", path)
    assert "taken up again" in out
    full = json.loads(path.read_text())
    assert full.keys() >= {"chip", "versions", "hardware", "commit", "dirty", "source"}
    assert full.keys() >= {"workload", "baselines", "floor", "verdicts"}
    assert full["versions"].keys() >= {"torch", "triton", "transformers", "driver", "flashinfer", "python"}
    assert full["dry_run"] is True
    sections = full["sections"]
    assert all(record["passed"] for record in sections["correctness"]["cells"].values())
    assert sections["generate"]["cells"].keys() | generate.ALONE == generate.cells(dry_run=True).keys()
    assert all(record["passed"] for record in sections["generate"]["cells"].values())
    assert set(sections["generate"]["left_out"].values()) == {"needs a GPU"}
    assert "memcheck decode" in sections["sanitizer"]["left_out"]
    assert sections["operator"]["cells"].keys() == workload.cells(dry_run=True).keys()
    for record in sections["operator"]["cells"].values():
        assert record["floor_us"] > 0
        assert record["ours_us"] > 0
        assert record["flash_us"] == min(record["flash_forms"].values())
        assert record["flashinfer_us"] is None
    for record in sections["gate"]["cells"].values():
        assert record["gain"].keys() == record["predicted_gain"].keys() == {"relay-cold", "relay-kept"}
    assert sections["e2e"]["cells"].keys() == e2e_cells.cells(dry_run=True).keys()
    for key, cell in e2e_cells.cells(dry_run=True).items():
        record = sections["e2e"]["cells"][key]
        assert record["contenders"].keys() == set(cell.contenders)
        for name, entry in record["contenders"].items():
            assert entry["rounds"] == 2
            assert ("step_s" in entry) == (name != "continuous-batching")
            assert entry.get("relayed") is (True if name.startswith("relay") else None)
            if record["rows"] > 1 and name in ("prefix-copied", "relay-cold", "relay-kept", "static-cache"):
                assert entry["tokens"]["equal_tokens"] == 1.0
    judged = {verdict["goal"]: verdict["met"] for verdict in full["verdicts"]}
    errors = "times 2 in float32, times 1.5 in bfloat16, times 1.5 in float16"
    assert judged.pop(f"right: no further from float64 than stock, {errors}") is True
    assert judged.pop("generate(): stock's tokens, relayed and replayed") is True
    assert set(judged.values()) == {None}, "times of a dry run meet no goal and miss none"
    assert "the device idles" in out.rstrip().splitlines()[-1], "the verdicts come last"

    out = run("benchmarks.gpu", "--out", path)
    assert out.count(": 0 cells run,") == len(sections)
    again = json.loads(path.read_text())
    assert {name: section["cells"] for name, section in again["sections"].items()} == {
        name: section["cells"] for name, section in sections.items()
    }


@pytest.mark.sweep
def test_tuner_dry_run_writes_the_table_elsewhere_with_a_reason_for_each_row(tmp_path):
    table = ROOT / "relay_hf" / "kernels" / "triton" / "tiles.json"
    before, path = table.read_text(), tmp_path / "tiles.json"
    out = run("benchmarks.tune", "--kernel", "decode", "--write", "--table", path)
    rows, old = json.loads(path.read_text())["tiles"], json.loads(before)["tiles"]
    assert "written" in out
    assert table.read_text() == before
    assert len(rows) == len(old)
    tuned = [row for row in rows if row["kernel"] == "decode" and row["chips"] == ["interpreter"]]
    assert tuned
    assert all(" us at " in row["reason"] and "the best of" in row["reason"] for row in tuned)
    assert [row for row in rows if row["kernel"] == "prefill"] == [row for row in old if row["kernel"] == "prefill"]


def test_a_dry_run_of_the_tuner_does_not_write_the_table_in_use():
    command = [sys.executable, "-m", "benchmarks.tune", "--dry-run", "--write"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "give --table" in done.stderr


def test_workload_covers_every_shape_and_starts_with_the_papers():
    shapes = list(workload.cells(dry_run=False).values())
    assert len(shapes) == 4 * 8 * 9
    assert shapes[0] == workload.PAPER
    assert {(shape.heads, shape.kv_heads) for shape in shapes} == {(32, 32), (32, 8), (28, 4), (64, 8)}
    assert {shape.prefix for shape in shapes} == {128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768}


def test_floor_counts_the_segment_once_and_own_tokens_for_each_row():
    shape = Decode(32, 8, batch=16, prefix=4096)
    kv = 2 * 8 * 128 * 2 * (4096 + 16 * 128)
    assert shape.bytes == kv + 2 * 16 * 32 * 128 * 2
    assert shape.reread_bytes == 2 * 8 * 128 * 2 * 16 * (4096 + 128) + 2 * 16 * 32 * 128 * 2
    assert shape.floor(H200_LIKE) == (shape.bytes / 4e12, "memory")
    assert Decode(64, 8, batch=256, prefix=32768).floor(H200_LIKE)[1] == "arithmetic"


def record(shape, ours_us, flash_us=None, flashinfer_us=None):
    floor, bound = shape.floor(H200_LIKE)
    fields = {name: getattr(shape, name) for name in ("heads", "kv_heads", "batch", "prefix", "stacked")}
    return fields | {
        "bound": bound,
        "floor_us": 1e6 * floor,
        "ours_us": ours_us,
        "share_of_floor": 1e6 * floor / ours_us,
        "share_of_matrix_rate": shape.flop / (1e-6 * ours_us) / H200_LIKE.matrix_rate,
        "flash_us": flash_us,
        "flashinfer_us": flashinfer_us,
    }


def judge(goal, *records):
    (found,) = [each for each in verdicts.OPERATOR if each.name.startswith(goal)]
    return found.judge({f"cell {i}": each for i, each in enumerate(records)})


def test_shares_of_the_floor_are_asked_by_its_length():
    long, middle, short = Decode(32, 32, 1, 32768), Decode(32, 8, 1, 32768), Decode(32, 8, 1, 128)
    for shape, goal, limit in (
        (long, "bound by memory, floor from 100 us", 0.90),
        (middle, "bound by memory, floor 20 to 100 us", 0.80),
    ):
        floor = 1e6 * shape.floor(H200_LIKE)[0]
        assert judge(goal, record(shape, floor / (limit + 0.01))).met is True
        assert judge(goal, record(shape, floor / (limit - 0.01))).met is False
    floor = 1e6 * short.floor(H200_LIKE)[0]
    assert judge("bound by memory, floor below 20 us", record(short, floor + 9.9)).met is True
    missed = judge("bound by memory, floor below 20 us", record(short, floor + 5), record(short, floor + 10.1))
    assert missed.met is False
    assert missed.found.startswith("1 of 2 cells")
    assert missed.found.endswith("cell 1")
    assert judge("bound by memory, floor from 100 us", record(short, 1.0)).met is None


def test_many_queries_are_held_to_the_matrix_rate_unless_own_kv_outweighs_it():
    busy = Decode(64, 8, 256, 32768)
    at_rate = 1e6 * busy.flop / H200_LIKE.matrix_rate
    assert judge("bound by arithmetic", record(busy, at_rate / 0.61)).met is True
    assert judge("bound by arithmetic", record(busy, at_rate / 0.59)).met is False
    own = Decode(32, 8, 256, 2048)  # 1024 queries on 2048 tokens, but 134 MB of own KV
    assert own.floor(H200_LIKE)[1] == "memory"
    assert judge("bound by arithmetic", record(own, 1.0)).met is None
    assert judge("bound by memory, floor 20 to 100 us", record(own, 1.0)).met is True


def test_baselines_are_held_against_ours():
    shape = Decode(32, 8, 16, 1024)
    assert judge("never slower than flash", record(shape, 10, flash_us=10)).met is True
    assert judge("never slower than flash", record(shape, 10, flash_us=9.9)).met is False
    assert judge("never slower than flash", record(shape, 10)).met is None
    for shape, goal, ratio in (
        (Decode(32, 8, 128, 1024), "1.3x", 1.3),
        (Decode(28, 4, 64, 1024), "1.0x", 1.0),
        (Decode(32, 8, 256, 1024), "0.85x", 0.85),
    ):
        assert judge(goal, record(shape, 10, flashinfer_us=10.01 * ratio)).met is True
        assert judge(goal, record(shape, 10, flashinfer_us=9.99 * ratio)).met is False
        others = {"1.3x", "1.0x", "0.85x"} - {goal}
        assert all(judge(other, record(shape, 10, flashinfer_us=10)).met is None for other in others)
    assert judge("the paper's figure", record(workload.PAPER, 10, flash_us=146)).met is True
    assert judge("the paper's figure", record(workload.PAPER, 10, flash_us=144)).met is False
    assert judge("the paper's figure", record(shape, 10, flash_us=200)).met is None


def test_the_gate_is_judged_where_it_relays():
    def call(predicted, stock, kept, relayed=True):
        gain = {"relay-kept": stock - kept}
        seconds = {"stock": stock, "relay-kept": kept}
        return {
            "predicted_gain": {"relay-kept": predicted},
            "gain": gain,
            "seconds": seconds,
            "relayed": {"relay-kept": relayed},
        }

    slower, choice = verdicts.gate({"a": call(0.5, 2.0, 1.0), "b": call(-0.1, 1.0, 1.5)})
    assert slower.met is True
    assert choice.met is True
    slower, choice = verdicts.gate({"a": call(0.5, 1.0, 1.04), "b": call(-0.1, 2.0, 1.0)})
    assert slower.met is False
    assert choice.found == "0 of 2"
    assert [each.met for each in verdicts.gate({"a": call(0.5, 1.0, 2.0, relayed=False)})] == [None, None]


def test_checks_that_failed_to_run_count_as_failed_and_what_was_left_out_is_said():
    section = {"cells": {"a": {"passed": True}, "b": {"error": "RuntimeError"}}, "left_out": {"c": "out of time"}}
    right, whole, clean = verdicts.checks({"correctness": section, "generate": section})
    assert right.met is whole.met is False
    assert right.found == whole.found == "1 of 2, 1 left out; failed: b"
    assert clean.met is None


def test_store_takes_up_only_what_is_of_the_same_sources_and_repeats_what_failed(tmp_path):
    identity = {"chip": "x", "versions": {}, "commit": "c", "source": "s", "dry_run": False}
    store = Store(tmp_path / "a.json", identity)
    store.leave_out("operator", ["one", "two"], "out of time")
    store.put("operator", "one", {"ours_us": 1.0})
    store.put("operator", "two", {"error": "RuntimeError"})
    assert store.section("operator")["left_out"] == {}
    taken_up = Store(store.path, identity)
    assert taken_up.cells("operator") == {"one": {"ours_us": 1.0}}
    assert Store(store.path, identity, fresh=True).cells("operator") == {}
    assert not Store(store.path, {**identity, "source": "other"}).resumed


def test_the_sanitizers_word_is_read_from_its_summary():
    clean = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    found = "========= ERROR SUMMARY: 3 errors\n"
    assert sanitizer.verdict(f"output finite\n{clean}")["passed"] is True
    assert sanitizer.verdict(f"output finite\n{found}")["passed"] is False
    assert sanitizer.verdict(f"output not finite\n{clean}")["passed"] is False
    assert sanitizer.verdict(clean)["passed"] is False, "the call did not come to its end"
    for output in ("", f"========= Error: Device not supported\n{found}"):
        with pytest.raises(LeftOut, match="did not run"):
            sanitizer.verdict(output)


def test_workers_return_records_as_they_are_done_and_are_stopped_at_the_deadline():
    workers = Workers(2, operator.itemgetter, "record")
    try:
        tasks = [({"record": {"number": number}},) for number in range(5)]
        done = list(workers.run(tasks, time.monotonic() + 60))
        assert sorted(record["number"] for _, record in done) == list(range(5))
        assert all(task[0]["record"] == record for task, record in done)
    finally:
        workers.stop()
    workers = Workers(1, functools.partial, time.sleep)
    start = time.monotonic()
    assert list(workers.run([(120,)], start + 0.5)) == []
    assert time.monotonic() - start < 60


def attempts_of():
    """What runs a task in a worker: most return, others fail in one of the ways in which a task may fail."""
    done = []

    def attempt(name):
        done.append(name)
        if name == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "raises":
            raise ValueError(name)
        if done[0] == "breaks" and len(done) > 1:
            raise Lost
        return {"name": name}

    return attempt


def test_a_worker_that_dies_costs_its_own_task_and_one_that_can_run_no_more_costs_none():
    workers = Workers(2, attempts_of)
    names = ["breaks", "a", "dies", "raises"]
    start = time.monotonic()
    try:
        records = {name: record for (name,), record in workers.run([(name,) for name in names], start + 120)}
    finally:
        workers.stop()
    assert time.monotonic() - start < 100
    assert records.pop("dies") == {"error": DIED}
    assert records.pop("raises") == {"error": "ValueError: raises"}
    assert records == {name: {"name": name} for name in ("a", "breaks")}


def test_a_command_that_is_not_done_in_time_is_ended_with_what_it_started(tmp_path):
    path = tmp_path / "pid"
    code = "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); "
    code += f"open({str(path)!r}, 'w').write(str(child.pid)); child.wait()"
    with pytest.raises(LeftOut, match="not done after 3 s"):
        processes.output_of(sys.executable, "-c", code, timeout=3)
    assert not psutil.pid_exists(int(path.read_text()))
    assert processes.output_of(sys.executable, "-c", "print('a'); raise SystemExit(3)", timeout=60) == (3, "a\n")


class Device(Context):
    """A context whose probes find a device that works, or does not."""

    def __init__(self, *probes):
        super().__init__(dry_run=True)
        self.clock.synchronize = functools.partial(next, iter(probes))


def baseline(**forms):
    """A baseline whose forms raise, or take so many seconds."""

    def make(result):
        if isinstance(result, Exception):
            raise result
        return result

    found = {name: (8, functools.partial(make, result)) for name, result in forms.items()}
    return types.SimpleNamespace(NAME="it", forms=lambda context, shape: found)


def test_what_a_baseline_does_is_said_in_its_times_and_only_a_broken_device_ends_the_rest():
    shape = Decode(4, 2, 1, 16)
    capture = RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def measure(context, **forms):
        return baselines.times(context, shape, baseline(**forms), lambda bytes_, make: make())

    context = Device("works")
    found = measure(context, first=capture, second=LeftOut("not built in time"), third=2e-6)
    assert found == {"first": f"failed: RuntimeError: {capture}", "second": "not built in time", "third": 2.0}
    assert context.broken_by is None
    context = Device()
    found = measure(context, first=KeyError("a"), second=2e-6)
    assert found == {
        "first": "failed: KeyError: 'a'",
        "second": "the device refuses calls since it first, 4/2 B=1 P=16",
    }
    assert Attempts(context)("operator", "a") == {"left_out": found["second"]}


def test_our_own_time_is_stored_before_the_baselines_run(monkeypatch):
    stored = []

    def times(context, shape, baseline, time):
        assert stored[0]["ours_us"] > 0
        assert stored[0]["flash_us"] is stored[0]["flashinfer_us"] is None
        raise KeyboardInterrupt

    context = Context(dry_run=True)
    context.ceilings, context.save = H200_LIKE, stored.append
    monkeypatch.setattr(baselines, "times", times)
    with pytest.raises(KeyboardInterrupt):
        decode.run(context, next(iter(workload.cells(dry_run=True).values())))


def test_a_backend_that_was_not_built_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(flashinfer, "find_spec", lambda name: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list(flashinfer.builds(dry_run=False)) == ["flashinfer fa2", "flashinfer fa3"]
    context = Context(dry_run=True)
    with pytest.raises(LeftOut, match=r"can't be built or is wrong: .*torch sees no CUDA device"):
        flashinfer.build("fa2", context)
    monkeypatch.setattr(flashinfer, "_TIMEOUT", 0.01)
    with pytest.raises(LeftOut, match=r"not done after 0\.01 s"):
        flashinfer.build("fa2", context)

    monkeypatch.setattr(flashinfer, "plan", None)
    context.ahead = {"flashinfer fa2": {"left_out": "not done after 60 s"}}
    context.dry_run = False
    for backend, why in (("fa2", "not done after 60 s"), ("fa3", "not built in time")):
        with pytest.raises(LeftOut, match=why):
            flashinfer.forms(context, Decode(4, 2, 1, 16))[backend][1]()
