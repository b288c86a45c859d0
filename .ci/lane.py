"""A run of tests in an environment: what was run, and what came of it. For the lanes that keep or print a result."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
# What another version of a dependency may change, in short: tokens and modes, every model type, what is known of
# Transformers.
CORE = ("tests/generation/test_exactness.py", "tests/modes", "tests/models", "tests/model/upstream")
READS_SOURCES = ("--ignore", "tests/model/upstream/test_names.py")  # which no version changes


@dataclass(frozen=True)
class Result:
    """Of a run: pytest's exit status, counts, and the tests that failed, each with the first line of why."""

    status: int
    passed: int
    skipped: int
    failed: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """As a file or a line has them."""
        return {"passed": self.passed, "failed": len(self.failed), "skipped": self.skipped}


def run(python: Path, paths: Iterable[str], *options: str) -> Result:
    """Run tests with the Python of an environment; pytest says what it does as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", "--numprocesses", "auto", "--dist", "worksteal", "--junit-xml", report]
        status = subprocess.run([*command, *options, *paths], cwd=ROOT, env=os.environ, check=False).returncode
        # Not written where pytest can't even start.
        suites = ElementTree.parse(report).getroot().iter("testcase") if report.is_file() else ()
        return result(status, suites)


def result(status: int, cases: Iterable[ElementTree.Element]) -> Result:
    """From pytest's exit status and the cases of its report."""
    passed, skipped, failed = 0, 0, []
    for case in cases:
        trouble = next((each for each in case if each.tag in ("failure", "error")), None)
        if trouble is not None:
            why = (trouble.get("message") or "").strip().partition("\n")[0]
            failed.append(f"{case.get('classname')}::{case.get('name')}: {why}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Result(status, passed, skipped, tuple(failed))
