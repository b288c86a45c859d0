"""Every row of the tile table compiled for every chip it names, on a machine without a GPU: what the assembler says."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.compile import SHARED_LIMIT, is_for_own
from relay_hf.kernels.triton.tuning import INTERPRETER, table

ROWS = {
    (chip, kernel, tile.head_size, tile.itemsize, tile.block_m)
    for tile in table()
    for chip in tile.chips
    for kernel in (tile.kernel, *(["own"] if tile.kernel == "decode" and is_for_own(tile) else []))
    if chip != INTERPRETER
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """In a process of its own: in this one kernels are interpreted."""
    path = tmp_path_factory.mktemp("compiled") / "kernels.json"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "benchmarks.compile", "--json", path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


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
