"""The GPU benchmark end to end: its arithmetic, what it makes of failures, how a cell is taken up again, its plots."""

import argparse
import dataclasses
import json
import math
import time

import pytest
import torch

import relay_hf
from benchmarks.gpu import __main__ as command_line
from benchmarks.gpu import (
    e2e,
    e2e_cells,
    e2e_contenders,
    e2e_first,
    e2e_idle,
    e2e_tables,
    e2e_verdicts,
    models,
    plots,
    session,
)
from benchmarks.gpu.context import Context
from benchmarks.gpu.e2e_bytes import PAGE, Bytes
from benchmarks.gpu.e2e_cells import LLAMA_2, LLAMA_3
from benchmarks.gpu.e2e_contenders import CONTENDERS, Contender
from benchmarks.gpu.e2e_turns import OUT_OF_TIME, compared, figures
from benchmarks.gpu.store import Store
from benchmarks.gpu.workers import Workers
from benchmarks.gpu.workload import Ceilings
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.sweep  # dry runs of whole sections

CELLS = e2e_cells.cells(dry_run=False)
TINY = e2e_cells.cells(dry_run=True)
KEY = next(iter(TINY))
IDENTITY = {"chip": "x", "versions": {}, "commit": "c", "source": "s", "dry_run": True}


def contender(total, first=None, **more):
    """What a contender's record has after three rounds."""
    firsts = [] if first is None else [first] * 3
    return {"run": 1, **figures([total] * 3, firsts, 128), "tokens_per_second": 32 * 128 / total, **more}


def record(key, **contenders):
    """A cell on a chip that copies 4 TB/s."""
    found = e2e.new_record(CELLS[key], 2, 4e12)
    found["contenders"] = {name.replace("_", "-"): entry for name, entry in contenders.items()}
    return found


def verdict(start, cells):
    (found,) = [each for each in e2e_verdicts.figures({"e2e": {"cells": cells}}) if each.goal.startswith(start)]
    return found


def test_cells_are_the_workloads_in_order_of_importance():
    keys = list(CELLS)
    assert keys[:6] == [
        "G1 B=32 P=2048",
        "G2 B=32 P=2048",
        "G1 B=32 P=0",
        "G1 B=32 P=8192",
        "G2 B=32 P=0",
        "G2 B=32 P=8192",
    ]
    assert keys[-3:] == ["one row B=1 P=4096", "one row B=1 P=0", "one row B=1 P=1024"]
    assert len(keys) == 6 + 3 * 6 + 3
    for cell in CELLS.values():
        assert (cell.workload.own, cell.workload.new) == (64, 128)
        assert ("relay-16" in cell.contenders) == (cell.workload.prefix == 0 and cell.name != "one row")
    assert set(command_line.CONTENDERS) == CONTENDERS.keys() == set(e2e_contenders.TEXT)


def test_bytes_of_a_step_are_the_weights_but_the_embedding_own_kv_and_the_segment_once():
    shape = e2e_cells._TINY
    model = models.build(shape, torch.device("cpu"))
    weights = sum(each.numel() for each in model.parameters()) - model.get_input_embeddings().weight.numel()
    assert Bytes(shape, 4).weights == 4 * weights

    assert Bytes(LLAMA_2).token == 2 * 32 * 4096 * 2
    assert Bytes(LLAMA_3).token == 2 * 32 * 1024 * 2
    workload = CELLS["G1 B=32 P=2048"].workload
    step, stock = Bytes(LLAMA_2).step(workload), Bytes(LLAMA_2).stock_step(workload, copying=False)
    assert step == Bytes(LLAMA_2).weights + (2048 + 32 * (64 + 64)) * Bytes(LLAMA_2).token
    assert stock - step == 31 * 2048 * Bytes(LLAMA_2).token
    copying = Bytes(LLAMA_2).stock_step(workload, copying=True)
    assert copying - Bytes(LLAMA_2).weights == 3 * (stock - Bytes(LLAMA_2).weights)
    assert record("G1 B=32 P=2048")["floor_step_s"] == step / 4e12


def test_memory_of_contenders_is_foretold():
    bytes_, workload = Bytes(LLAMA_2), CELLS["G1 B=32 P=8192"].workload
    rows = 32 * (8192 + 64 + 128) * bytes_.token
    assert bytes_.kv("static-cache", workload) == rows
    assert bytes_.kv("stock", workload) == rows + 2 * rows // 32
    assert bytes_.kv("prefix-copied", workload) == bytes_.kv("stock", workload) + 2 * 8192 * bytes_.token
    assert bytes_.kv("relay-kept", workload) == (8192 + 32 * (64 + 128)) * bytes_.token
    assert bytes_.kv("continuous-batching", workload) == (32 + 32) * PAGE * bytes_.token
    assert bytes_.kv("stock", workload) > 141e9 - bytes_.weights, "not on an H200"
    assert bytes_.kv("stock", CELLS["G1 B=32 P=4096"].workload) < 100e9


def test_a_step_is_what_the_tokens_after_the_first_take():
    found = figures([3.0, 2.0, 9.0], [1.0, 0.5, 0.46], 128)
    assert found == {"rounds": 3, "total_s": 3.0, "first_token_s": 0.5, "step_s": 2.5 / 127}
    assert figures([2.0], [], 128) == {"rounds": 1, "total_s": 2.0}


def test_tokens_are_compared_place_by_place():
    stock = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1], [2, 2, 2, 2]])
    other = torch.tensor([[1, 2, 3, 4], [5, 0, 7, 0], [1, 1, 1, 0], [2, 2, 2, 2]])
    found = compared([other], [stock])
    assert found == {"equal_tokens": pytest.approx(13 / 16), "equal_rows": 0.5, "first_difference": 1}
    assert compared([stock], [stock])["first_difference"] is None


def test_idle_time_is_what_no_kernel_covers():
    assert e2e_idle.span_and_busy([(6, 8), (0, 4), (1, 2), (3, 5)]) == (8, 7)
    events = [("a" * 100, 0.0, 4.0), ("b", 5.0, 6.0), ("a" * 100, 8.0, 10.0)]
    found = e2e_idle.summary(events, steps=2, step_s=7e-6)
    assert found["idle_share"] == pytest.approx(0.3)
    assert found["idle_share_unprofiled"] == pytest.approx(0.5)
    assert found["step_span_us"] == 5.0
    assert found["launches"] == 1.5
    assert found["kernels_us"] == {"a" * 80: 3.0, "b": 0.5}
    with pytest.raises(RuntimeError, match="saw no kernel"):
        e2e_idle.summary([], 2, None)


@pytest.mark.parametrize(
    ("key", "baseline", "asked"),
    [
        ("G1 B=32 P=2048", "stock", 5.0),
        ("G1 B=32 P=2048", "prefix_copied", 3.0),
        ("G1 B=32 P=2048", "continuous_batching", 1.5),
        ("G2 B=32 P=2048", "prefix_copied", 2.5),
    ],
)
def test_times_a_baseline_is_asked_of_the_relay_kept_and_cold(key, baseline, asked):
    goal = f"{key}, prefix kept or not: {asked:g}x {baseline.replace('_', '-')}"

    def judged(kept, cold, **fields):
        contenders = {baseline: contender(asked), "relay_kept": contender(kept), "relay_cold": contender(cold)}
        return verdict(goal, {key: record(key, **contenders) | fields})

    assert judged(0.9, 0.99).met is True
    assert judged(0.9, 1.01).met is False
    assert judged(1.01, 0.9).found.startswith("1 of 2 cells")
    assert judged(2.0, 2.0, prefix=512).met is None
    assert judged(2.0, 2.0, rows=8).met is None
    without = record(key, relay_kept=contender(1.0), **{baseline: {"does_not_fit": "KV"}})
    assert verdict(goal, {key: without}).met is None


def test_steps_are_held_to_the_floor_and_to_those_with_a_short_prefix():
    floor = record("G1 B=32 P=2048")["floor_step_s"]

    def kept(key, step, idle=0.05):
        return record(key, relay_kept=contender(1.0 + 127 * step, 1.0, device={"idle_share": idle}))

    for times, met in ((1.39, True), (1.41, False)):
        cells = {"G1 B=32 P=2048": kept("G1 B=32 P=2048", times * floor)}
        assert verdict("B=32, prefix kept: a decode step at most 1.4x", cells).met is met
    for prefix, asked in ((2048, 0.92), (8192, 0.77)):
        key, goal = f"G1 B=32 P={prefix}", f"B=32: tokens/s in decoding at prefix {prefix}"
        for share, met in ((asked + 0.01, True), (asked - 0.01, False)):
            base = record("G1 B=32 P=0", relay_16=contender(1.0 + 127 * 0.005, 1.0))
            assert verdict(goal, {key: kept(key, 0.005 / share), "G1 B=32 P=0": base}).met is met
        assert verdict(goal, {key: kept(key, 0.005)}).met is None
    for idle, met in ((0.09, True), (0.11, False)):
        goal = "B=32, prefix kept: the device idles under 10%"
        assert verdict(goal, {"G1 B=32 P=2048": kept("G1 B=32 P=2048", floor, idle)}).met is met


def test_one_row_with_its_prefix_kept_is_held_to_one_without_and_to_stock():
    def judged(goal, first, step, stock_step=0.01):
        stock = contender(0.9 + 127 * stock_step, 0.9)
        long = record("one row B=1 P=4096", relay_kept=contender(first + 127 * step, first), stock=stock)
        short = record("one row B=1 P=0", stock=contender(0.1 + 127 * stock_step, 0.1))
        return verdict(goal, {"one row B=1 P=4096": long, "one row B=1 P=0": short})

    first, decode = "one row, prefix 4096 kept: time to first token", "one row, prefix kept: decoding"
    assert judged(first, 0.114, 0.01).met is True
    assert judged(first, 0.116, 0.01).met is False
    assert judged(decode, 0.1, 0.0102).met is True
    assert judged(decode, 0.1, 0.0104).met is False
    assert verdict(first, {}).met is None


def test_the_first_token_of_one_row_is_there_when_a_streamer_is_shown_it():
    goal, cells = "one row, prefix 4096 kept: time to first token", {}
    for prefix, shown, name in ((4096, 0.11, "relay_kept"), (0, 0.1, "stock")):
        entry = contender(0.9 + 127 * 0.01, 0.9) | {"first_shown_s": shown}
        cells[f"one row B=1 P={prefix}"] = record(f"one row B=1 P={prefix}", **{name: entry})
    assert verdict(goal, cells).met is True
    cells["one row B=1 P=4096"]["contenders"]["relay-kept"]["first_shown_s"] = 0.12
    assert verdict(goal, cells).met is False

    for name, relayed in (("one row B=1 P=24", True), ("one row B=1 P=0", False)):
        entries = e2e.run(context_for(["stock", *["relay-kept"] * relayed]), TINY[name])["contenders"]
        for entry in entries.values():
            pairs = zip(entry["first_shown_seconds"], entry["first_token_seconds"], strict=True)
            assert all(0 < shown < returned for shown, returned in pairs)
            assert 0 < entry["first_shown_s"] < entry["first_token_s"]
    assert "first_shown_s" not in e2e.run(context_for(["stock"]), TINY[KEY])["contenders"]["stock"]


def test_a_call_that_is_shown_to_the_clock_keeps_its_answer_as_any_other():
    clock, model = e2e_first.Clock(), relay_hf.patch_model(tiny_model("llama"), policy="always")
    ids = torch.arange(3, 43)[None]
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, streamer=clock.streamer)
    assert clock.read_at is not None
    assert [len(kept) for kept in model.relay.prefixes] == [tokens.shape[1] - 1]


def context_for(contenders=None):
    context = Context(dry_run=True)
    context.ceilings, context.contenders = Ceilings(4e12, 8e14), contenders
    return context


def run_section(context, store, chosen=KEY):
    pattern = command_line._pattern(f"^{chosen}$")
    session.run_section("e2e", context, store, Workers(0, list), time.monotonic() + 60, print, pattern)
    return store.cells("e2e")[KEY]


def test_a_cell_is_taken_up_again_for_other_contenders_only(tmp_path):
    store = Store(tmp_path / "a.json", IDENTITY)
    first = json.loads(json.dumps(run_section(context_for(["stock", "relay-kept"]), store)))
    assert first["contenders"].keys() == {"stock", "relay-kept"}
    assert first["contenders"]["relay-kept"]["relayed"] is True
    assert first["contenders"]["relay-kept"]["tokens"]["equal_tokens"] == 1.0
    assert store.cells("e2e").keys() == {KEY}, "only what --cells matches"

    taken_up = Store(store.path, IDENTITY)
    assert run_section(context_for(["stock", "relay-kept"]), taken_up) == first
    second = run_section(context_for(["stock", "relay-cold", "static-cache"]), taken_up)
    assert second["contenders"].keys() == {"stock", "relay-kept", "relay-cold", "static-cache"}
    for name in ("stock", "relay-kept"):
        assert second["contenders"][name] == first["contenders"][name]
    assert second["contenders"]["relay-cold"]["run"] == second["runs"] == 2
    assert second["contenders"]["relay-cold"]["rounds"] == 2


def test_who_is_measured_apart_answers_the_same_prompts(tmp_path):
    entries = e2e.run(context_for(["stock", "static-cache"]), TINY[KEY])["contenders"]
    assert entries["static-cache"]["tokens"]["equal_tokens"] == 1.0


def failing(error):
    def prepare(bench):
        raise error

    return Contender(prepare)


def test_a_contender_that_fails_or_does_not_fit_leaves_the_others_alone(monkeypatch):
    oom, bug = torch.OutOfMemoryError("CUDA out of memory"), ValueError("a bug")
    monkeypatch.setitem(CONTENDERS, "prefix-copied", failing(oom))
    monkeypatch.setitem(CONTENDERS, "relay-cold", failing(bug))
    context = context_for(["stock", "prefix-copied", "relay-cold", "relay-kept"])
    done = e2e.run(context, TINY[KEY])
    entries = done["contenders"]
    assert entries["prefix-copied"] == {"does_not_fit": "torch.OutOfMemoryError: CUDA out of memory"}
    assert entries["relay-cold"] == {"failed": "ValueError: a bug"}
    assert entries["stock"]["rounds"] == entries["relay-kept"]["rounds"] == 2
    assert e2e.missing(None, TINY[KEY], done) == ["continuous-batching", "relay-cold", "static-cache"]
    said = "\n".join(str(each) for each in e2e_tables.summary({KEY: done}))
    assert "relay-cold, failed: ValueError: a bug" in said

    context.free_bytes = lambda: Bytes(TINY[KEY].workload.model, 4).kv("stock", TINY[KEY].workload) - 1
    context.contenders = ["stock", "relay-kept"]
    entries = e2e.run(context, TINY[KEY])["contenders"]
    assert entries["stock"]["does_not_fit"].startswith("KV of 0.0 GB")
    assert entries["relay-kept"]["rounds"] == 2


def test_what_has_no_time_is_left_out_and_missing_and_what_has_some_says_how_many_rounds(monkeypatch):
    context = context_for(["stock", "relay-kept", "static-cache"])
    context.deadline = -math.inf
    done = e2e.run(context, TINY[KEY])
    assert done["contenders"]["stock"] == done["contenders"]["relay-kept"] == {"left_out": OUT_OF_TIME}
    assert "compiling may take" in done["contenders"]["static-cache"]["left_out"]
    assert e2e.missing(context.contenders, TINY[KEY], done) == ["stock", "relay-kept", "static-cache"]

    calls, stock = [], CONTENDERS["stock"]

    def prepare(bench):
        calls.append(bench.workload.new)
        if len(calls) == 3:  # after the warm-up and a round
            monkeypatch.setattr(time, "monotonic", lambda: math.inf)
        return stock.prepare(bench)

    monkeypatch.setitem(CONTENDERS, "stock", dataclasses.replace(stock, prepare=prepare))
    context = context_for(["stock"])
    context.deadline = time.monotonic() + 1000
    entry = e2e.run(context, TINY[KEY])["contenders"]["stock"]
    assert calls == [3, 3, 1]
    assert entry["rounds"] == 1
    assert entry["step_s"] == (entry["seconds"][0] - entry["first_token_seconds"][0]) / 2


def test_an_incomplete_regular_expression_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a regular expression, got 'G1\('"):
        command_line._pattern("G1(")


def h200_like():
    """A result such as an H200 might give."""
    cells = {}
    for key in [f"{name} B=32 P={prefix}" for name in ("G1", "G2") for prefix in (0, 512, 1024, 2048, 4096, 8192)]:
        empty = record(key)
        prefix, floor, stock = empty["prefix"], empty["floor_step_s"], empty["stock_copying_step_s"]
        step, prefill = 1.25 * floor, 0.05 + 7e-4 * prefix
        found = {
            "stock": contender(prefill + 127 * max(0.025, stock), prefill),
            "continuous_batching": contender(1 + 4 * prefill + 127 * 2 * empty["stock_floor_step_s"]),
            "static_cache": contender(prefill + 127 * 1.3 * empty["stock_floor_step_s"], prefill),
        }
        if prefix:
            found["prefix_copied"] = contender(0.2 + 127 * max(0.025, stock), 0.2)
            found["relay_cold"] = contender(0.15 + 127 * step, 0.15)
            found["relay_kept"] = contender(0.05 + 127 * step, 0.05, device={"idle_share": 0.04})
        else:
            found["relay_16"] = contender(0.05 + 127 * step, 0.05)
        if empty["workload"] == "G1" and prefix == 8192:
            for name in ("stock", "prefix_copied", "static_cache"):
                found[name] = {"does_not_fit": "KV of 142.9 GB, 126.1 GB are free"}
        cells[key] = record(key, **found)
    return {
        **IDENTITY,
        "chip": "NVIDIA H200 (invented figures)",
        "sections": {"e2e": {"cells": cells}},
        "dry_run": False,
    }


def test_plots_are_drawn_beside_the_json_and_again_from_it(tmp_path, monkeypatch, capsys):
    content, path = h200_like(), tmp_path / "result.json"
    names = [f"result_{name}.{kind}" for name in ("speed", "step") for kind in ("png", "svg")]
    assert [file.name for file in plots.draw(content, path)] == names
    svg = (tmp_path / "result_step.svg").read_text(encoding="utf-8")
    path.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "result_step.svg").unlink()
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu.plots", str(path)])
    plots.main()
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert (tmp_path / "result_step.svg").read_text(encoding="utf-8") == svg
    assert (tmp_path / "result_speed.png").read_bytes().startswith(b"\x89PNG")
    assert plots.draw({**content, "sections": {}}, path) == []


def test_a_contender_that_fails_after_a_round_keeps_what_it_has(monkeypatch):
    calls, stock = [], CONTENDERS["stock"]

    def prepare(bench):
        calls.append(bench.workload.new)
        if len(calls) == 4:
            raise ValueError("later")
        return stock.prepare(bench)

    monkeypatch.setitem(CONTENDERS, "stock", dataclasses.replace(stock, prepare=prepare))
    done = e2e.run(context_for(["stock"]), TINY[KEY])
    assert calls == [3, 3, 1, 3]
    assert done["contenders"]["stock"]["rounds"] == 1
    assert done["contenders"]["stock"]["ended_by"] == "ValueError: later"
    assert "stock, ended by: ValueError: later" in "\n".join(map(str, e2e_tables.summary({KEY: done})))


def test_the_profile_sees_the_steps_between_the_first_ones_and_the_last(monkeypatch):
    log, context = [], context_for(["relay-kept"])
    recorder = type(
        "Recorder", (), {"start": lambda self: log.append("start"), "stop": lambda self: log.append("stop")}
    )
    monkeypatch.setattr(e2e_idle, "profile", lambda activities: recorder())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    workload = dataclasses.replace(TINY[KEY].workload, new=1 + e2e_idle.SKIPPED + e2e_idle.STEPS)
    bench = e2e_contenders.E2EBench(workload, models.build(workload.model, context.device), context)
    seen = e2e_idle._Profile()
    bench.generate(bench.twin, bench.prompts, stopping_criteria=[seen])
    assert bench.twin.relay.last.relayed
    assert log == ["start", "stop"]
    assert seen.calls == workload.new
