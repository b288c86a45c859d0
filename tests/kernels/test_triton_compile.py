"""Every row of the tile table compiled for every chip it names, on a machine without a GPU: what the assembler says."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from benchmarks import compiled as compiled_results
from benchmarks.compile import SHARED_LIMIT, is_for_own
from benchmarks.compiled import kept
from relay_hf.kernels.triton.tuning import INTERPRETER, table

ROWS = {
    (chip, kernel, tile.head_size, tile.itemsize, tile.block_m)
    for tile in table()
    for chip in tile.chips
    for kernel in (tile.kernel, *(["own"] if tile.kernel == "decode" and is_for_own(tile) else []))
    if chip != INTERPRETER
}

COMMAND = [sys.executable, "-m", "benchmarks.compile"]
COMPILING = {**os.environ, "TRITON_INTERPRET": "0"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What is kept of these sources. Others are compiled, in another process: in this one kernels are interpreted."""
    found = kept()
    if found is not None:
        return found
    path = tmp_path_factory.mktemp("compiled") / "kernels.json"
    done = subprocess.run([*COMMAND, "--json", path], env=COMPILING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_what_is_kept_is_of_these_sources():
    assert kept() is not None, (
        "a kernel, the table of tiles or Triton has changed: run make compile, and commit what it writes"
    )


@pytest.mark.sweep
def test_what_is_kept_is_what_the_compiler_says(tmp_path):
    """Of one chip and kernel, compiled now."""
    command = [*COMMAND, "--chips", "sm_120", "--json", tmp_path / "kernels.json"]
    done = subprocess.run(command, env=COMPILING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "kernels.json").read_text()) == [each for each in kept() if each["chip"] == "sm_120"]


def test_a_change_of_code_is_another_digest_and_a_comment_is_none(monkeypatch, tmp_path):
    for path in compiled_results._KERNELS.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(compiled_results, "_KERNELS", tmp_path)
    before = compiled_results.digest()
    source = tmp_path / "merge.py"
    source.write_text(f"{source.read_text()}\n# a comment\n")
    assert compiled_results.digest() == before
    source.write_text(f"{source.read_text()}\n_MORE = 1\n")
    assert compiled_results.digest() != before
    assert kept() is None


def test_a_compile_that_is_killed_leaves_no_process_behind():
    done = subprocess.Popen([*COMMAND, "--workers", "1"], env=COMPILING, stdout=subprocess.DEVNULL)
    started = psutil.Process(done.pid)
    while not started.children(recursive=True):
        assert done.poll() is None
    workers = started.children(recursive=True)
    done.kill()
    done.wait()
    _, left = psutil.wait_procs(workers, timeout=60)
    assert not left


def test_every_row_and_chip_is_compiled(compiled):
    kinds = {"bf16": 2, "fp32": 4}
    seen = {(c["chip"], c["kernel"], c["head_size"], kinds[c["dtype"]], c["block_m"]) for c in compiled}
    assert seen >= ROWS
    assert {c["chip"] for c in compiled if c["kernel"] == "merge"} == set(SHARED_LIMIT)
    assert {chip for chip, *_ in ROWS} == set(SHARED_LIMIT)


def test_nothing_spills(compiled):
    assert [c for c in compiled if c["spilled"]] == []


def test_shared_memory_is_within_the_chips(compiled):
    assert [c for c in compiled if c["shared"] > SHARED_LIMIT[c["chip"]]] == []


def test_keys_and_values_are_loaded_16_bytes_at_a_time(compiled):
    assert [c for c in compiled if c["kernel"] != "merge" and c["async_widths"] != [16]] == []


def test_half_precision_products_are_the_matrix_units(compiled):
    """The tile's own kind of instruction: of a warpgroup on sm_90 from 64 queries on, of a warp elsewhere."""
    for c in compiled:
        if c["kernel"] in ("few", "merge") or c["dtype"] != "bf16":
            assert c["kernel"] != "few" or not c["matrix"], c
            continue
        kind = "HMMA"
        if c["block_m"] >= 64 and c["chip"] in ("sm_90", "sm_100"):
            kind = {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}[c["chip"]]
        assert kind in c["matrix"], c
