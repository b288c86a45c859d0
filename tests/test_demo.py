"""The demo, run as a user runs it, with a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_demo(*arguments):
    command = [sys.executable, "-W", "error::FutureWarning", "examples/demo.py", "--tiny", "--new-tokens", "4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_demo_shows_identical_tokens_less_kv_and_the_report():
    done = run_demo()
    assert done.returncode == 0, done.stderr
    rows = [line.split("│") for line in done.stdout.splitlines() if "│" in line]
    cells = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}
    assert set(cells) == {"stock generate()", "relay_hf, first call", "relay_hf, prefix kept"}
    for *_, kv, same_tokens in cells.values():
        assert same_tokens == "yes"
        assert float(kv) <= float(cells["stock generate()"][-2])
    assert float(cells["relay_hf, first call"][-2]) < float(cells["stock generate()"][-2]) / 4
    assert done.stdout.count("RelayReport(relayed") == 2


def test_demo_runs_with_one_row():
    assert run_demo("--rows", "1").returncode == 0
