"""A fixed run over files of strangers, and the memory that greedy ones get; the fuzzer finds what is planted for it."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from relay_hf.prefix import file as prefix_file
from tests.support.counts import count_tried

from . import case
from .__main__ import main
from .report import Summary
from .run import run

FIRST, CASES = 5_000_000, 300
ROOT = Path(__file__).parents[2]


def test_files_of_strangers_are_refused_or_load_as_what_was_saved():
    summary = Summary()
    for number in range(FIRST, FIRST + CASES):
        summary.add(run(number))
    count_tried("files damaged or forged", CASES)
    assert not summary.findings, "\n".join(summary.findings)
    assert {kind for kind, _ in summary.kinds} == set(case.KINDS), "a kind of change was never drawn"
    assert min(summary.outcomes[kind] for kind in ("refused", "same", "as forged")) >= 5


@pytest.mark.sweep  # in processes of their own, a file each
def test_no_file_takes_more_memory_than_twice_its_size_16_bytes_a_token_and_a_constant():
    command = [sys.executable, "-m", "tests.fuzz_files.memory"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # an arena asks for 64 MiB
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    refused = [line for line in lines if "a header that takes far more than its tensors" in line]
    assert refused == [line for line in lines if ", too many, " in line]
    assert 2 * len(refused) + 4 == len(lines)


def _sums_unchecked(monkeypatch):
    class Any(str):
        __hash__ = str.__hash__

        def __ne__(self, other):
            return False

    monkeypatch.setattr(prefix_file, "digest_of", lambda tensor: Any())


def _errors_as_they_come(monkeypatch):
    monkeypatch.setattr(prefix_file, "on_a_line", lambda text: text)


def _pipes_opened(monkeypatch):
    monkeypatch.setattr(prefix_file, "is_there", lambda path: True)
    monkeypatch.setattr(sys.modules[run.__module__], "_SECONDS", 1)


def _unpickled(monkeypatch):
    described = prefix_file._Described.of
    monkeypatch.setattr(prefix_file._Described, "of", lambda *given: pickle.loads(pickle.dumps(described(*given))))


BUGS = {
    "it loaded as something else than what was saved": ("header.offsets_swapped", _sums_unchecked),
    "the error is not a line that can be read": ("header.dtype", _errors_as_they_come),
    "it hangs": ("elsewhere.pipe", _pipes_opened),
    "pickle.find_class": ("forged.parents", _unpickled),
}


@pytest.mark.parametrize("words", BUGS)
def test_a_planted_bug_is_found_and_its_reproducer_runs_it_again(words, monkeypatch, capsys):
    kind, plant = BUGS[words]
    plant(monkeypatch)
    numbers = (number for number in range(FIRST, FIRST + CASES) if kind in case.draw(number).kinds)
    found = next(outcome for outcome in map(run, numbers) if words in outcome.detail)
    assert found.kind == "finding"
    number = re.fullmatch(r"python -m tests\.fuzz_files --case (\d+)", found.case.reproducer)[1]
    monkeypatch.setattr("sys.argv", ["tests.fuzz_files", "--case", number])
    assert main() == 1
    assert "=> finding" in capsys.readouterr().out


def test_the_summary_counts_cases_by_kind_of_change(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tests.fuzz_files", "--cases", "10", "--seed", "3"])
    assert main() == 0
    printed = capsys.readouterr().out
    assert "10 cases in" in printed
    assert len(re.findall(r"│ (?:forged|header|bytes|elsewhere)\.\w+ ", printed)) == len(case.KINDS)
