"""`relay-hf doctor`: all is well here, and it fails where something is wrong."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import relay_hf
from relay_hf.cli import system
from relay_hf.kernels import torch as torch_backend
from relay_hf.kernels import triton as triton_backend
from relay_hf.model import tested
from relay_hf.model.upstream import drift
from relay_hf.reasons import Reason
from tests.support.tiny_models import tiny_model

from .command import Ran, wrong

ROOT = Path(relay_hf.__file__).parents[1]

CHECKS = ["torch path, float64", "torch path, float32", "torch path, bfloat16", "torch path, float16"]
CHECKS += ["Triton kernels, float32", "Triton kernels, float16", "patched generate()"]  # in the interpreter, here


@pytest.fixture(autouse=True, scope="module")
def all_is_loaded():
    """The first command loads typer's parts and relay_hf's, by what some tests replace."""
    Ran("doctor")


def test_all_is_well_here(run):
    done = run("doctor")
    assert done.code == 0, done.out + done.error
    assert [line.partition(":")[0] for line in done.out.splitlines() if line.startswith("ok ")] == [
        f"ok      {name}" for name in CHECKS
    ]
    for what in (
        "│ transformers ",
        "│ torch ",
        '│ policy "auto" │ relays a call where',
        "no CUDA device",
        "All is well.",
    ):
        assert what in done.out
    assert done.error == ""


def test_every_check_fails_where_attention_is_wrong(run, monkeypatch):
    monkeypatch.setattr(torch_backend, "relay_attention", wrong)
    monkeypatch.setattr(triton_backend, "relay_attention", wrong)
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
    monkeypatch.setattr(relay_hf.generation.eligible_models, "model_refusal", lambda *arguments: no_reason)
    monkeypatch.setattr("relay_hf.cli.self_check._triton_dtypes", lambda device: [])
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


def test_it_says_what_was_tested_and_what_no_test_ran(run):
    done = run("doctor")
    for said in (
        "│ tested with │ Transformers 5.17.0, 5.23.0, 5.24.0: 5.24.0 in full, the others in part ",
        f" PyTorch {tested.PYTORCH['CPU']} on CPU, {tested.PYTORCH['CUDA']} on CUDA ",
        *tested.NOT_RUN,
        *tested.DEVICES.values(),
    ):
        assert said in done.out
    found = run("doctor", "--json").json
    assert found["installed"] is True
    assert found["tested"]["transformers"] == [*tested.TRANSFORMERS]
    assert found["tested"]["not_run"] == [*tested.NOT_RUN]
    assert found["notes"] == [*system.untried(), *system.untried("CPU")]


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("transformers", "5.99.1", "Transformers 5.99.1 is newer than 5.24.0, the newest that was tested."),
        ("transformers", "5.20.2", "Transformers 5.20.2 was not tested."),
        ("torch", "2.99.0+cu131", "PyTorch 2.99.0+cu131 is newer than 2.13.0, the newest that was tested on CPU."),
    ],
)
def test_a_version_that_no_test_ran_is_a_note_and_not_wrong(run, monkeypatch, package, version, said):
    installed = system._version
    monkeypatch.setattr(system, "_version", lambda name: version if name == package else installed(name))
    monkeypatch.setattr("relay_hf.cli.self_check._triton_dtypes", lambda device: [])
    done = run("doctor")
    assert done.code == 0, done.error
    assert f"note    {said}" in done.out.splitlines()
    assert said in run("doctor", "--json").json["notes"]


@pytest.mark.parametrize("version", tested.TRANSFORMERS)
def test_a_version_that_a_test_ran_has_no_note(monkeypatch, version):
    monkeypatch.setattr(system, "_version", {"transformers": version, "torch": "2.13.0+cpu"}.get)
    assert system.untried() == []
    assert system.untried("CPU") == []
    assert system.untried("CUDA") == ["PyTorch 2.13.0+cpu is newer than 2.11.0, the newest that was tested on CUDA."]


def test_a_changed_fact_of_transformers_is_wrong_in_the_words_of_patch_model(run, monkeypatch):
    difference = "the arguments of Cache.update: expected ['key_states'], found ['keys']"
    monkeypatch.setattr(drift, "changed", lambda: difference)
    with pytest.raises(relay_hf.RelayError) as raised:
        relay_hf.patch_model(tiny_model("llama"))
    done = run("doctor")
    assert done.code == 1
    assert str(raised.value) in " ".join(done.error.split())
    assert "│ attention by " in done.out
    done = run("doctor", "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert found["wrong"] == [str(raised.value)]
    assert (found["ok"], found["checks"]) == (False, [])


def test_another_version_of_what_only_computes_is_wrong_and_is_checked_all_the_same(run, monkeypatch):
    installed = system._version
    monkeypatch.setattr(system, "_version", lambda name: "2.11.0" if name == "torch" else installed(name))
    done = run("doctor", "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert found["wrong"] == ["torch is 2.11.0"]
    assert [each["passed"] for each in found["checks"]] == [True] * len(CHECKS)


def without_relay_hf(folder):
    """A module path with all that is installed here but relay_hf, for a Python that reads no path files (-S)."""
    paths = []
    for number, path in enumerate(filter(lambda path: path.endswith("site-packages"), sys.path)):
        paths.append(folder / str(number))
        paths[-1].mkdir()
        for each in Path(path).iterdir():
            if "relay_hf" not in each.name:
                (paths[-1] / each.name).symlink_to(each)
    return paths


def doctor_in(folder, path):
    """Exit status, standard output and error of `relay-hf doctor --json` with that module path alone."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "relay_hf", "doctor", "--json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "1000"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_checkout_that_is_not_installed_reads_its_own_pyproject(tmp_path):
    status, out, error = doctor_in(tmp_path, [*without_relay_hf(tmp_path), ROOT])
    assert (status, error) == (0, "")
    found = json.loads(out)
    assert (found["ok"], found["installed"], found["wrong"]) == (True, False, [])
    here = [vars(each) for each in system.packages(system.needs())]
    assert sorted(found["packages"], key=str) == sorted(here, key=str)
    assert {each["name"] for each in found["packages"]} >= {"python", "torch", "transformers"}


@pytest.mark.parametrize("beside", [None, '[project]\nname = "another"\n'], ids=["nothing beside", "another's"])
def test_a_copy_without_a_pyproject_of_its_own_is_wrong_and_no_traceback(beside, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "relay_hf").symlink_to(ROOT / "relay_hf")
    if beside:
        (copy / "pyproject.toml").write_text(beside)
    status, out, error = doctor_in(tmp_path, [*without_relay_hf(tmp_path), copy])
    assert status == 1
    wrong = "relay_hf is not installed, and no pyproject.toml of its own lies beside it"
    assert json.loads(out)["wrong"] == [wrong]
    assert wrong in error
    assert "Traceback" not in error
