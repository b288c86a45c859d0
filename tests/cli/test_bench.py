"""`relay-hf bench`: a user's own model and shape of prompts, on ones that take a second."""

import json

import pytest

from relay_hf.cli.benchmark import contenders, timed_model
from relay_hf.kernels import torch as torch_backend
from tests.support.tiny_models import tiny_model

from .command import wrong

SHAPE = ("--rows", 3, "--prefix", 20, "--own", 5, "--new", 2)
QUICK = (*SHAPE, "--rounds", 1, "--policy", "always")
ALL = ("--contenders", ",".join(contenders.CONTENDERS))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The model that is built on the spot computes next to nothing."""
    monkeypatch.setattr(timed_model, "SMALL_MODEL", timed_model.ModelShape(64, 128, 2, 4, 4, 256))


def test_stock_and_the_patched_model_are_timed_on_the_shape_that_is_given(run):
    found = run("bench", *QUICK, "--json").json
    (record,) = found["workloads"]
    assert [record["workload"][name] for name in ("rows", "prefix", "own", "new")] == [3, 20, 5, 2]
    assert [each["contender"] for each in record["contenders"]] == ["stock", "relay-cold", "relay-kept"]
    assert [each["same_tokens"] for each in record["contenders"]] == [True] * 3
    _, cold, kept = (each["report"] for each in record["contenders"])
    assert (cold["rows"], cold["prefix_length"], cold["prompt_tokens_computed"]) == (3, 20, 20 + 3 * 5)
    assert (cold["prefix_tokens_reused"], kept["prefix_tokens_reused"]) == (0, 20)


def test_every_round_of_every_contender_is_written_and_shown(run, tmp_path):
    path = tmp_path / "mine.json"
    done = run("bench", *SHAPE, *ALL, "--rounds", 2, "--policy", "always", "--output", path)
    assert done.code == 0, done.error
    assert "model: a Llama of random weights, 2 layers of width 64" in done.out
    assert "3 prompts of 20 shared + 5 own tokens, 2 new" in done.out
    assert "tokens of stock, prefix-copied, relay-cold, relay-kept: identical" in done.out
    result = json.loads(path.read_text())
    assert result["versions"].keys() >= {"python", "torch", "transformers", "relay_hf"}
    assert result["hardware"].keys() >= {"cpu", "cores", "threads", "memory_gib"}
    (record,) = result["workloads"]
    assert [each["contender"] for each in record["contenders"]] == list(contenders.CONTENDERS)
    for each in record["contenders"]:
        assert len(each["seconds"]) == 2
        assert min(each["seconds"]) <= each["median"] <= max(each["seconds"])
        assert each["same_tokens"] is True
        assert f"│ {each['contender']} " in done.out


def test_a_model_of_yours_takes_the_place_of_the_one_that_is_built(run, folder):
    found = run("bench", *QUICK, "--model", folder, "--json").json
    (record,) = found["workloads"]
    assert record["workload"]["model"] == {"name": str(folder), "vocab": 32000}
    assert [each["same_tokens"] for each in record["contenders"]] == [True] * 3
    assert f"model: {folder}" in run("bench", *QUICK, "--model", folder, columns=1000).out


def test_other_tokens_than_stocks_are_exit_code_1(run, monkeypatch):
    monkeypatch.setattr(torch_backend, "relay_attention", wrong)
    done = run("bench", *QUICK)
    assert done.code == 1
    assert "tokens of stock, relay-cold, relay-kept: differ: relay-cold, relay-kept" in done.out


def test_where_nothing_is_shared_a_copied_prefix_is_left_out(run):
    found = run("bench", *QUICK, *ALL, "--prefix", 0, "--json").json
    measured = [each["contender"] for each in found["workloads"][0]["contenders"]]
    assert measured == [name for name in contenders.CONTENDERS if name != "prefix-copied"]


def test_a_contender_that_cannot_run_the_model_is_named(run, tmp_path):
    tiny_model("mamba").save_pretrained(tmp_path)
    said = run("bench", *QUICK, *ALL, "--model", tmp_path).refuses("--contenders")
    assert "prefix-copied can't run a model whose cache holds states" in said
    assert run("bench", *QUICK, "--model", tmp_path).code == 0


def test_help_names_every_contender_and_the_model_that_is_built(run):
    shown = " ".join(run("bench", "--help").out.replace("│", " ").split())
    options = shown.partition("--contenders")[2].partition("--policy")[0]
    assert [name for name in contenders.CONTENDERS if name not in options] == []
    assert "8 layers of width 512" in shown
    assert "8 layers of width 512" in timed_model.ModelShape(512, 1376, 8, 8, 8).about
    assert "Without it, random, and with PROMPTS the demo's chat model." in shown


@pytest.mark.parametrize(
    ("arguments", "argument", "what"),
    [
        (("--contenders", "stock,warp"), "--contenders", "there is no 'warp'. Choose among stock, "),
        (("--contenders", "prefix-copied", "--prefix", 0), "--contenders", "none of prefix-copied says anything of"),
        (("--device", "cuda"), "--device", "torch sees no CUDA device"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(run, arguments, argument, what):
    assert what in run("bench", *arguments).refuses(argument)
