"""The command `python -m benchmarks.cpu`, on workloads that take a second."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from benchmarks.cpu.command import app
from benchmarks.cpu.contenders import CONTENDERS
from benchmarks.cpu.workloads import WORKLOADS
from relay_hf.kernels import torch as torch_backend

from .command import Ran, wrong

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FEW = ("--contenders", "stock,relay-cold,relay-kept", "--rounds", 1, "--policy", "always")


@pytest.fixture
def run():
    return partial(Ran, app=app, name="python -m benchmarks.cpu")


def test_every_round_of_every_contender_is_written_and_drawn(run, tmp_path):
    files = ("--output", tmp_path / "smoke.json", "--plot", tmp_path / "smoke.png")
    done = run("smoke", "--rounds", 2, "--policy", "always", *files)
    assert done.code == 0, done.error
    assert "tokens of stock, prefix-copied, relay-cold, relay-kept: identical" in done.out
    assert files[3].read_bytes().startswith(b"\x89PNG")

    result = json.loads(files[1].read_text())
    assert result["versions"].keys() >= {"python", "torch", "transformers", "relay_hf"}
    assert result["hardware"].keys() >= {"cpu", "cores", "threads", "memory_gib"}
    (record,) = result["workloads"]
    assert record["workload"]["prefix"] == WORKLOADS["smoke"].prefix
    measured = {each["contender"]: each for each in record["contenders"]}
    assert list(measured) == [name for name in CONTENDERS if name != "one-level"]
    for name, each in measured.items():
        assert len(each["seconds"]) == 2
        assert min(each["seconds"]) <= each["median"] <= max(each["seconds"])
        assert each["same_tokens"] is (None if CONTENDERS[name].tokens == "other" else True)
    assert measured["relay-cold"]["report"]["prefix_tokens_reused"] == 0
    assert measured["relay-kept"]["report"]["prefix_tokens_reused"] == WORKLOADS["smoke"].prefix

    again = run("--from", files[1])
    assert again.code == 0, again.error
    assert again.out == done.out


def test_other_numbers_replace_the_workloads(run):
    found = run("smoke", *FEW, "--rows", 3, "--prefix", 20, "--own", 5, "--new", 2, "--json").json
    (record,) = found["workloads"]
    assert [record["workload"][name] for name in ("rows", "prefix", "own", "new")] == [3, 20, 5, 2]
    cold = record["contenders"][1]["report"]
    assert (cold["rows"], cold["prefix_length"], cold["prompt_tokens_computed"]) == (3, 20, 20 + 3 * 5)


def test_another_model_takes_the_place_of_the_workloads(run, folder):
    found = run("smoke", *FEW, "--model", folder, "--json").json
    (record,) = found["workloads"]
    assert record["workload"]["model"] == {"name": str(folder), "vocab": 32000}
    assert [each["same_tokens"] for each in record["contenders"]] == [True] * 3
    assert record["contenders"][2]["report"]["prefix_tokens_reused"] == WORKLOADS["smoke"].prefix


def test_other_tokens_than_stocks_are_exit_code_1(run, monkeypatch):
    monkeypatch.setattr(torch_backend, "relay_attention", wrong)
    done = run("smoke", *FEW)
    assert done.code == 1
    assert "tokens of stock, relay-cold, relay-kept: differ: relay-cold, relay-kept" in done.out


@pytest.mark.parametrize("name", ["cpu", "trees"])
def test_committed_results_can_be_shown_and_drawn(run, name, tmp_path):
    plot = tmp_path / "plot.svg"
    done = run("--from", RESULTS / f"{name}.json", "--plot", plot)
    assert done.code == 0, done.error
    drawn = plot.read_text()
    for record in json.loads((RESULTS / f"{name}.json").read_text())["workloads"]:
        assert f"{record['name']}: " in done.out
        assert f"<!-- {record['name']}: " in drawn  # matplotlib notes each text beside its glyphs
    assert "<!-- relay-kept -->" in drawn
    # These files have an older name of it.
    assert "│ token-once " in done.out
    assert "<!-- token-once -->" in drawn
    assert "floor" not in done.out + drawn


def test_list_describes_every_workload_and_contender(run):
    done = run("--list")
    assert all(f"│ {name} " in done.out for name in (*WORKLOADS, *CONTENDERS))
    texts = run("--list", "--json").json["workloads"]
    assert texts["C3"] == "1 prompt of 1,056 tokens, 16 samples each, 32 new"


@pytest.mark.parametrize(
    ("arguments", "argument", "what"),
    [
        (("C9",), "WORKLOAD", "there is no 'C9'. Choose among C1, "),
        (("smoke", "--contenders", "stock,warp"), "--contenders", "there is no 'warp'. Choose among stock, "),
        (("smoke", "--contenders", "one-level"), "--contenders", "says anything of smoke"),
        (("smoke-tree", "--rows", 3), "--rows", "must be a multiple of 2"),
        (("smoke", "--plot", "plot.jpg"), "--plot", "must end in .png or .svg; got plot.jpg"),
        (("smoke", "--device", "cuda"), "--device", "torch sees no CUDA device"),
        (("--from", "nowhere.json"), "--from", "No such file or directory: nowhere.json"),
        (("--from", Path(__file__)), "--from", "Give a file that python -m benchmarks.cpu --output wrote"),
        (("--from", RESULTS / "grid.json"), "--from", "holds no result of a workload"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(run, arguments, argument, what):
    assert what in run(*arguments).refuses(argument)


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "relay_hf[bench]"' in run("smoke", "--plot", "plot.png").refuses("--plot")


MEASURING = [
    ("C5",),
    ("--rows", 9),
    ("--prefix", 9),
    ("--own", 9),
    ("--new", 9),
    ("--model", "x"),
    ("--device", "cpu"),
    ("--rounds", 3),
    ("--contenders", "stock"),
    ("--policy", "auto"),
    ("--threads", 1),
]


@pytest.mark.parametrize("given", MEASURING, ids=str)
def test_what_is_measured_can_not_be_chosen_where_nothing_is_measured(run, given):
    """Not even as its default: what is given would be ignored."""
    argument = "WORKLOAD" if given == ("C5",) else given[0]
    for option in (("--from", RESULTS / "cpu.json"), ("--list",)):
        said = run(*given, *option).refuses(argument)
        assert f"; leave {argument} out." in said
        assert option[0] in said


@pytest.mark.parametrize("given", [("--output", "x"), ("--plot", "x.png"), ("--from", "x")], ids=str)
def test_a_list_is_neither_written_nor_drawn(run, given):
    assert "--list only describes what there is; leave " in run("--list", *given).refuses(given[0])
