"""`relay-hf doctor`: all is well here, and it fails where something is wrong."""

import importlib
import json

import pytest

import relay_hf
from relay_hf.cli import system
from relay_hf.kernels import torch_path, triton_path
from relay_hf.reasons import Reason

from .command import wrong

CHECKS = ["torch path, float64", "torch path, float32", "torch path, bfloat16", "torch path, float16"]
CHECKS += ["Triton kernels, float32", "Triton kernels, float16", "patched generate()"]  # in the interpreter, here


def test_all_is_well_here(run):
    done = run("doctor")
    assert done.code == 0, done.out + done.error
    assert [line.partition(":")[0] for line in done.out.splitlines() if line.startswith("ok ")] == [
        f"ok      {name}" for name in CHECKS
    ]
    for what in (
        "│ transformers │",
        "│ torch ",
        '│ policy "auto" │ relays a call where',
        "no CUDA device",
        "All is well.",
    ):
        assert what in done.out
    assert done.error == ""


def test_every_check_fails_where_attention_is_wrong(run, monkeypatch):
    monkeypatch.setattr(torch_path, "relay_attention", wrong)
    monkeypatch.setattr(triton_path, "relay_attention", wrong)
    done = run("doctor", "--json")
    assert done.code == 1
    assert done.error.startswith("Something is wrong: torch path, float64: largest difference to the reference ")
    assert "tokens of 4 of 4 rows are not stock's" in done.error
    found = json.loads(done.out)
    assert found["ok"] is False
    assert [each["name"] for each in found["checks"] if not each["passed"]] == CHECKS
    assert len(found["wrong"]) == len(CHECKS)
    assert found["backend"] == "torch"
    assert found["hardware"]["threads"] >= 1


def test_a_call_that_is_left_to_stock_is_wrong(run, monkeypatch):
    no_reason = Reason.UNFIT_MODEL.of(why="no reason at all")
    monkeypatch.setattr(relay_hf.eligibility, "model_refusal", lambda *arguments: no_reason)
    monkeypatch.setattr("relay_hf.cli.checks._triton_dtypes", lambda device: [])
    done = run("doctor")
    assert done.code == 1
    assert "a call that should be relayed was left to stock: no reason at all" in done.error


def test_a_version_that_is_not_supported_is_wrong_and_nothing_is_loaded(run, monkeypatch):
    version = system._version
    monkeypatch.setattr(system, "_version", lambda name: "4.57.0" if name == "transformers" else version(name))
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was loaded"))
    done = run("doctor")
    assert done.code == 1
    assert "transformers is 4.57.0" in done.error
    assert "failed" in next(line for line in done.out.splitlines() if "transformers" in line)


def test_a_package_that_cannot_be_imported_is_named(run, monkeypatch):
    def broken(name):
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    done = run("doctor")
    assert done.code == 1
    assert "torch can't be imported: OSError: libtorch.so: cannot open shared object file" in done.error
