"""What docs/quality.md says: in float32 the answers are stock's, and half precision is as near to float32 as stock."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.document.markdown import result
from benchmarks.numerics.results import BOUND
from benchmarks.quality.__main__ import DTYPES, measure
from benchmarks.quality.record import counted, distance_record, first_differences, ratio_record, same_rows
from benchmarks.quality.runs import Answers, Distance
from relay_hf import showcase

ROOT = Path(__file__).parents[2]


def test_in_float32_all_answers_of_the_result_are_stocks():
    found = result("quality")
    assert len(found["questions"]) == 32
    assert found["float32"]["differ"] == []
    assert found["float32"]["answers"]["stock"] == found["float32"]["answers"]["relay_hf"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_the_result_is_as_near_to_float32_as_stock(dtype):
    """As in docs/numerics.md, up to twice the standard error that 32 answers leave."""
    distance = result("quality")[dtype]["distance"]
    ratio = distance["over_stock"]
    assert ratio["standard_error"] < 0.1, "too few answers to tell"
    assert ratio["ratio"] <= BOUND + 2 * ratio["standard_error"]
    assert distance["relay_hf"]["agreement"] >= distance["stock"]["agreement"] - 0.01


def test_the_script_measures_all_three_dtypes():
    found = measure("random", questions=3, new=4, size="tiny")
    assert [name for name in DTYPES if name in found] == ["float32", "bfloat16", "float16"]
    assert found["float32"]["differ"] == []
    for name in ("bfloat16", "float16"):
        assert len(found[name]["answers"]["relay_hf"]) == 3
        assert 0 < found[name]["distance"]["relay_hf"]["divergence"] < 0.1
        assert found[name]["distance"]["over_stock"]["ratio"] < 2


def test_a_difference_is_found_where_it_begins():
    tokenizer = showcase.load("random", size="tiny").tokenizer
    stock = Answers(torch.tensor([[5, 6, 7], [5, 6, 7]]), torch.tensor([[1.0, 0.5, 0.25], [1.0, 0.5, 0.25]]))
    other = Answers(torch.tensor([[5, 6, 7], [5, 9, 9]]), stock.gaps)
    (found,) = first_differences(stock, other, tokenizer)
    assert (found["row"], found["step"], found["gap"]) == (1, 1, 0.5)
    assert found["stock"] == tokenizer.decode(6) != found["relay_hf"]
    assert same_rows(stock, other) == 1


def test_what_follows_the_end_of_an_answer_does_not_count():
    tokens = torch.tensor([[5, 2, 2, 2], [5, 6, 7, 8]])
    counts = counted(tokens, end=2)
    assert counts.T.tolist() == [[True, True, False, False], [True] * 4]
    stock = Distance(torch.ones(4, 2).double(), torch.ones(4, 2, dtype=torch.bool))
    off = torch.tensor([[2.0, 2.0]] * 2 + [[100.0, 2.0]] * 2).double()
    ours = Distance(off, off < 3)
    assert distance_record(ours, counts)["divergence"] == 2
    assert distance_record(ours, counts)["agreement"] == 1
    assert ratio_record(stock, ours, counts)["ratio"] == 2


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--questions" in done.stdout
