"""The benchmarks' workloads and contenders, the grid, and files of prefixes."""

import dataclasses
import json

import pytest
import torch

from benchmarks import compile as compile_kernels
from benchmarks import saving, tune
from benchmarks.cpu.bench import TreeBench
from benchmarks.cpu.contenders import CONTENDERS
from benchmarks.cpu.workloads import WORKLOADS
from benchmarks.gpu import __main__ as gpu
from benchmarks.grid import Cell, cells
from relay_hf.cli.benchmark.measure import Measurement
from tests.fuzz import __main__ as fuzz
from tests.fuzz_files import __main__ as fuzz_files


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


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (tune.main, ("--table", "/dev/null"), "without --write no table is written; leave --table out"),
        (gpu.main, ("--sections", "gate", "--contenders", "stock"), "the section e2e has contenders; leave --conte"),
        (compile_kernels.main, ("--write", "--chips", "sm_90"), "--write keeps the figures of all chips; leave --chip"),
        (fuzz.main, ("--shrink",), "only one --case is made smaller; leave --shrink out"),
        (fuzz.main, ("--case", "1", "--jobs", "2"), "--case runs one case, in this process; leave --jobs out"),
        (fuzz_files.main, ("--case", "1", "--seed", "2"), "--case runs one case; leave --seed out"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(main, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
