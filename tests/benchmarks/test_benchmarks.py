"""The benchmarks' workloads and contenders, the grid, and files of prefixes."""

import dataclasses
import json

import pytest
import torch

from benchmarks import saving
from benchmarks.cpu.bench import TreeBench
from benchmarks.cpu.contenders import CONTENDERS
from benchmarks.cpu.workloads import WORKLOADS
from benchmarks.grid import Cell, cells
from relay_hf.cli.benchmark.measure import Measurement


def test_a_tree_is_shared_at_all_levels_and_at_one():
    bench = TreeBench(WORKLOADS["smoke-tree"], policy="always")
    tokens, levels = {}, {}
    for name in ("stock", "one-level", "relay-cold"):
        tokens[name] = CONTENDERS[name].prepare(bench)()
        twin = CONTENDERS[name].twin
        levels[name] = twin and twin(bench).relay.last.levels
    assert levels == {"stock": None, "one-level": 1, "relay-cold": 2}
    assert bench.first_level_twin.relay.last.prompt_tokens_computed == 48 + 4 * (24 + 8)
    assert torch.equal(tokens["one-level"], tokens["stock"])
    assert torch.equal(tokens["relay-cold"], tokens["stock"])
    assert bench.twin.relay.last.prompt_tokens_computed == 48 + 2 * 24 + 4 * 8


def test_one_level_is_compared_only_where_no_later_level_could_be_a_prefix_of_its_length():
    fits = CONTENDERS["one-level"].fits
    assert [name for name, workload in WORKLOADS.items() if fits(workload)] == ["C5", "smoke-tree"]
    assert not fits(dataclasses.replace(WORKLOADS["C5"], prefix=256 + 32))


def test_rows_share_the_prefix_in_every_draw_and_nothing_else():
    workload = WORKLOADS["smoke"]
    first, second = workload.prompts(0), workload.prompts(1)
    assert (first[:, : workload.prefix] == second[0, : workload.prefix]).all()
    assert (
        len({tuple(row) for row in first[:, workload.prefix :].tolist() + second[:, workload.prefix :].tolist()}) == 8
    )


def test_grid_covers_all_shapes_and_pairs_its_rounds():
    assert len(set(map(repr, cells()))) == 36
    measurements = [
        Measurement("stock", [1.0, 2.0, 3.0]),
        Measurement("relay-cold", [1.1, 2.2, 3.3]),
        Measurement("relay-kept", [0.5, 1.0, 1.5]),
    ]
    cell = Cell(cells()[0], measurements)
    assert cell.ratio("relay-cold") == pytest.approx((1.1, 0.0))
    assert cell.worst == pytest.approx(1.1)


def test_saving_is_measured_beside_a_plain_read(tmp_path, monkeypatch):
    path = tmp_path / "saving.json"
    monkeypatch.setattr("sys.argv", ["benchmarks.saving", "--mib", "1", "--rounds", "2", "--json", str(path)])
    saving.main()
    result = json.loads(path.read_text())
    assert result["prefix"]["bytes"] >= 2**20
    assert {len(seconds) for seconds in result["seconds"].values()} == {2}
    assert {"save", "load, from the disk", "plain read, from the disk"} <= result["seconds"].keys()
