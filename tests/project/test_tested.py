"""What this release claims to run with, and says was tested, is what ran."""

import json
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import relay_hf
from relay_hf.generation import cost_model
from relay_hf.model import tested

ROOT = Path(relay_hf.__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
BOUNDS = json.loads((ROOT / "requirements/bounds.json").read_text())
GPU = [json.loads((ROOT / f"benchmarks/results/gpu_nvidia_h200{which}.json").read_text()) for which in ("", "_e2e")]
EXTRAS = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
ASKED = [Requirement(line) for line in (*PROJECT["dependencies"], *EXTRAS, *PYPROJECT["build-system"]["requires"])]


def pinned():
    """Every version of a package that a file of requirements pins: a lane runs with it."""
    text = "\n".join(path.read_text() for path in (ROOT / "requirements").glob("*.txt"))
    return {(name.lower().replace("_", "-"), Version(v)) for name, v in re.findall(r"^([\w-]+)==([\w.]+)", text, re.M)}


BOUNDED = {(asked.name, each.version) for asked in ASKED for each in asked.specifier if each.operator == ">="}


@pytest.mark.parametrize(("name", "bound"), sorted(BOUNDED))
def test_a_lower_bound_is_a_version_that_was_run(name, bound):
    run = BOUNDS["versions"].get(name)
    if run is None:  # a client: its lane runs with the lowest that is claimed
        assert (name.lower().replace("_", "-"), Version(bound)) in pinned()
    else:
        assert Version(run) == Version(bound), "run make test-bounds"


def test_the_run_with_the_lowest_versions_was_one_without_a_failure():
    assert BOUNDS["tests"]["failed"] == 0
    assert BOUNDS["tests"]["passed"] > 1000
    assert [path for path in BOUNDS["paths"] if not (ROOT / path).exists()] == []
    assert {(name.lower().replace("_", "-"), Version(v)) for name, v in BOUNDS["versions"].items()} <= pinned()


def test_python_is_claimed_from_the_version_on_that_runs_the_tests():
    lowest = SpecifierSet(PROJECT["requires-python"])
    assert str(lowest) == f">={tested.PYTHON['CPU']}"
    assert BOUNDS["python"].startswith(f"{tested.PYTHON['CPU']}.")
    assert lowest.contains(platform.python_version())
    named = re.findall(r"Python :: (\d\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert named == sorted(tested.PYTHON.values())
    tools = PYPROJECT["tool"]
    assert tools["mypy"]["python_version"] == tested.PYTHON["CPU"]
    assert tools["ruff"]["target-version"] == f"py{tested.PYTHON['CPU'].replace('.', '')}"


def test_nothing_but_transformers_is_capped():
    capped = {asked.name for asked in ASKED if any(each.operator != ">=" for each in asked.specifier)}
    assert capped == {"transformers"}


def test_the_versions_of_pytorch_and_python_are_those_that_computed():
    assert ("torch", Version(tested.PYTORCH["CPU"])) in pinned()
    for result in GPU:
        assert result["versions"]["torch"] == tested.PYTORCH["CUDA"]
        assert result["versions"]["python"].startswith(f"{tested.PYTHON['CUDA']}.")
        assert f"{result['chip']}, with Transformers {result['versions']['transformers']};" in tested.DEVICES["CUDA"]


def test_where_the_default_policy_relays_is_said_of_every_device():
    """Hopper's compute capability is 9: the only one whose kernels were measured."""
    assert {9} == cost_model.MEASURED
    relayed, stock = {*tested.RELAYED_BY_DEFAULT}, {*tested.STOCK_BY_DEFAULT}
    devices = {word for devices in tested.DEVICES for word in devices.split(", ")}
    assert devices - {"CUDA"} | {"NVIDIA Hopper", "other NVIDIA GPUs"} == relayed | stock
    assert relayed == {"CPU", "NVIDIA Hopper"}
    for device in ("ROCm", "MPS, XPU"):
        assert 'policy "auto" leaves calls to stock' in tested.DEVICES[device]
    assert "relays on Hopper, and leaves calls to stock on other GPUs" in tested.DEVICES["CUDA"]


def test_the_readme_says_what_the_doctor_says():
    section = (ROOT / "README.md").read_text().partition("## What was tested\n")[2].partition("\n## ")[0]
    said = [*tested.TRANSFORMERS, *tested.PYTORCH.values(), *tested.PYTHON.values()]
    said += [word for devices in tested.DEVICES for word in devices.split(", ")]
    assert [each for each in said if each not in section] == []


def test_what_was_tested_can_be_read_where_nothing_is_installed():
    path = ROOT / "relay_hf/model/tested.py"
    code = f"import runpy; print(runpy.run_path({str(path)!r})['TRANSFORMERS'])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tested.TRANSFORMERS}\n"
