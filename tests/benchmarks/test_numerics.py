"""Half precision stays as close to float32 as stock's, as docs/numerics.md says; and the check would notice if not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.numerics.__main__ import main
from benchmarks.numerics.document import expected_rows, read
from benchmarks.numerics.results import BOUND, summarize
from benchmarks.numerics.runs import run
from benchmarks.numerics.subjects import SUBJECTS
from relay_hf.kernels.torch import merge as merging

ROOT = Path(__file__).parents[2]
ROUTED = {subject.name for subject in SUBJECTS if subject.routed}


def test_the_document_has_a_row_for_each_model_and_dtype():
    assert read().keys() == expected_rows()


@pytest.mark.parametrize(("model", "dtype"), sorted(expected_rows()))
def test_the_documents_ratios_are_within_the_bound(model, dtype):
    row = read()[model, dtype]
    assert row.median <= BOUND
    assert row.ratio <= BOUND + (2 * row.deviation if model in ROUTED else 0)
    assert row.deviation < (0.05 if model in ROUTED else 0.01), "too few seeds to tell"


@pytest.mark.sweep
def test_small_form():
    command = [sys.executable, "-m", "benchmarks.numerics", "--small", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("float16") == done.stdout.count("bfloat16") * 2 == 20


def test_a_family_that_there_is_not_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["numerics", "--families", "llama;lama"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "--families must name some of llama; mistral" in capsys.readouterr().err


def _round_log_sum_exps(out, lse, other_out, other_lse, more, merge=merging.merge):
    return merge(out, lse, other_out, (other_lse * 16).round() / 16, more)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_planted_rounding_is_noticed(family, monkeypatch):
    subjects = [subject for subject in SUBJECTS if subject.name == family]
    assert all(result.within for result in run(subjects, seeds=2, jobs=1))
    monkeypatch.setattr(merging, "merge", _round_log_sum_exps)
    results = run(subjects, seeds=2, jobs=1)
    assert [result.dtype for result in results if not result.within] == ["bfloat16", "float16"]


def test_the_standard_error_of_a_ratio_is_its_spread():
    from benchmarks.numerics.errors import Errors

    generator = torch.Generator().manual_seed(0)

    def draw():
        stock, patched = (torch.rand(40, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))
        return summarize("", "", False, [Errors(a, b, a) for a, b in zip(stock, patched, strict=True)])

    results = [draw() for _ in range(300)]
    spread = torch.tensor([result.ratio for result in results]).std()
    mean = torch.tensor([result.deviation for result in results]).mean()
    assert float(mean / spread) == pytest.approx(1, abs=0.1)
