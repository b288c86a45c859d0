"""The core tests with the newest Transformers below 6 that the package index serves: `make test-newest`.

A release comes every two weeks, and this notices it on the day it comes: the index is asked at every run. Where no
release is newer than the latest pin, or the index can't be asked, nothing is run. Exit status 1: tests fail; 2: the
release can't be installed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from lane import CORE, READS_SOURCES, ROOT, run
from packaging.version import Version

HERE, ENVIRONMENT = ROOT / ".venv", ROOT / ".venv-newest"
LENDERS = (ROOT / ".venv-clients", HERE)
PYTHON = ENVIRONMENT / "bin" / "python"
PIN = re.search(r"^transformers==(.+)$", (ROOT / "requirements/pins.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
WANTED = "transformers<6"
# The tests of a client, and the package that has to be content with this Transformers.
CLIENTS = {
    "test_constrained.py": "xgrammar",
    "test_lm_eval.py": "lm_eval",
    "test_nnsight.py": "nnsight",
    "test_offload.py": "accelerate",
    "test_peft.py": "peft",
    "test_peft_tuners.py": "peft",
    "test_pipeline.py": "",
    "test_quantizers.py": "compressed_tensors",
    "test_streaming.py": "",
    "test_trl.py": "trl",
}


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pip in an environment."""
    return subprocess.run([python, "-m", "pip", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def last(output: str) -> str:
    """The line of pip's errors that says most."""
    lines = [line for line in output.splitlines() if line.startswith("ERROR:")] or output.splitlines() or ["no output"]
    return lines[-1]


def newest() -> str:
    """The version that the index serves.

    Raises:
        LookupError: it can't be asked; with what pip says.
    """
    # What is installed does not count: without an index, pip would find it and be content.
    asked = ("--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-")
    done = pip(HERE / "bin" / "python", "install", *asked, "--retries", "1", "--timeout", "20", WANTED)
    if done.returncode:
        raise LookupError(last(done.stderr))
    return json.loads(done.stdout)["install"][0]["metadata"]["version"]


def install(version: str) -> str | None:
    """Make an environment over those of the pins and the clients, with that Transformers. None, or what is wrong."""
    # As Makefile's rule does, for requirements that are known only now.
    subprocess.run([HERE / "bin" / "python", "-m", "venv", "--clear", "--without-pip", ENVIRONMENT], check=True)
    site = ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own, *lent = (
        subprocess.run([each / "bin" / "python", *site], capture_output=True, text=True, check=True).stdout.strip()
        for each in (ENVIRONMENT, *LENDERS)
    )
    (Path(own) / "lent.pth").write_text("".join(f"{each}\n" for each in lent), encoding="utf-8")
    for arguments in (
        ["--upgrade", f"transformers=={version}"],
        ["--no-deps", "--no-build-isolation", "--editable", "."],
    ):
        done = pip(PYTHON, "install", "--quiet", *arguments)
        if done.returncode:
            return last(done.stderr)
    return None


def unfit(complaints: str) -> dict[str, str]:
    """From what `pip check` says: the clients that don't install with this Transformers, and why."""
    said = {line.partition(" ")[0].lower().replace("-", "_"): line for line in complaints.splitlines()}
    return {test: said[package] for test, package in CLIENTS.items() if package in said}


def main() -> int:
    """Ask, install, run, and say what came of it."""
    try:
        version = newest()
    except LookupError as error:
        print(f"The package index can't be asked for the newest Transformers, so nothing was run. pip says: {error}")
        return 0
    if Version(version) <= Version(PIN):
        than = "the latest pin" if version == PIN else f"older than the latest pin, {PIN}"
        print(f"The newest Transformers that the package index serves is {version}, {than}: nothing more to run.")
        return 0
    wrong = install(version)
    if wrong is not None:
        print(f"Transformers {version} is the newest, and can't be installed over the pins. pip says: {wrong}")
        return 2
    left_out = unfit(pip(PYTHON, "check").stdout)
    clients = [f"tests/clients/{test}" for test in CLIENTS if test not in left_out]
    options = (*READS_SOURCES, "--all-types", "--quiet", "--tb", "short")
    found = run(PYTHON, [*CORE, *clients], *options)
    counts = ", ".join(f"{count} {what}" for what, count in found.counts.items())
    print(f"\nTransformers {version}, where {PIN} is pinned: {counts} (pytest's exit status {found.status})")
    for test, why in left_out.items():
        print(f"  not run: tests/clients/{test}: {why}")
    for test in found.failed:
        print(f"  failed: {test}")
    return int(found.status != 0)


if __name__ == "__main__":
    sys.exit(main())
