"""`relay-hf demo`, with a tiny model."""

import pytest

from relay_hf.kernels import torch as torch_backend

from .command import TINY, wrong

NAMES = ["stock generate()", "relay_hf, first call", "relay_hf, prefix kept"]


def test_it_shows_identical_tokens_less_kv_and_the_report(run):
    done = run("demo", *TINY)
    assert done.code == 0, done.error
    rows = [line.split("│") for line in done.out.splitlines() if "│" in line]
    cells = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}
    assert list(cells) == NAMES
    assert all(same == "yes" for *_, same in cells.values())
    stock, first, kept = (float(cells[name][-2]) for name in NAMES)
    assert first < stock / 4
    assert kept < stock / 4
    assert done.out.count("RelayReport(relayed") == 2
    assert "its text is noise" in done.out
    assert "relay-hf demo --model HuggingFaceTB/SmolLM2-135M-Instruct" in done.out


def test_json_has_what_the_table_has(run):
    found = run("demo", *TINY, "--json", "--rows", 3).json
    assert (found["rows"], found["new_tokens"], found["same_tokens"]) == (3, 4, True)
    assert [each["name"] for each in found["runs"]] == NAMES
    stock, first, kept = found["runs"]
    assert stock["report"] is None
    assert (first["report"]["prefix_tokens_reused"], first["report"]["relayed"]) == (0, True)
    assert kept["report"]["prefix_tokens_reused"] == kept["report"]["prefix_length"] > 1000
    assert first["kv_bytes"] < stock["kv_bytes"] / 2


def test_a_model_of_yours_shows_its_first_answer(run, folder):
    done = run("demo", "--model", folder, "--rows", 2, "--new-tokens", 3)
    assert done.code == 0, done.error
    assert f"LlamaForCausalLM from {folder}" in done.out
    assert "The first answer: " in done.out
    assert "noise" not in done.out


def test_one_row_is_no_error(run):
    assert run("demo", *TINY, "--rows", 1).code == 0


def test_other_tokens_than_stocks_are_exit_code_1_in_float32_alone(run, monkeypatch):
    monkeypatch.setattr(torch_backend, "relay_attention", wrong)
    done = run("demo", *TINY, "--rows", 4)
    assert done.code == 1
    assert "NO" in done.out
    done = run("demo", *TINY, "--rows", 4, "--dtype", "bfloat16")
    assert done.code == 0
    assert "a difference is not an error here" in done.out


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [(("--rows", 0), "--rows"), (("--dtype", "int8"), "--dtype"), (("--model", "x"), "--tiny")],
)
def test_what_makes_no_sense_is_refused_by_name(run, arguments, argument):
    run("demo", "--tiny", *arguments).refuses(argument)
