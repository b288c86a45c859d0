"""What a newcomer meets first: help, version, and the way in."""

import subprocess
import sys

import pytest

import relay_hf
from relay_hf.cli.console import REAL_MODEL

OPTIONS = {
    "demo": ("--model", "--rows", "--new", "--dtype", "--tiny", "--json"),
    "explain": ("PROMPTS", "--jsonl", "--separator", "--tokenizer", "--model", "--samples", "--new", "--json"),
    "bench": (
        *("PROMPTS", "--jsonl", "--separator", "--tokenizer"),
        *("--model", "--device", "--rounds", "--contenders", "--policy", "--threads"),
        *("--rows", "--prefix", "--own", "--new", "--json", "--output"),
    ),
    "doctor": ("--json",),
}


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("command", OPTIONS)
def test_help_has_every_option_and_examples_that_parse(run, command):
    shown = run(command, "--help")
    assert shown.code == 0
    for option in OPTIONS[command]:
        assert f" {option} " in shown.out
    examples = [line.strip() for line in shown.out.splitlines() if f"relay-hf {command} " in f"{line.strip()} "]
    examples = [line for line in examples if not line.startswith(("Usage", "│"))]
    assert len(examples) >= 2
    for example in examples:
        words = example.partition(f"relay-hf {command}")[2].split()
        assert run(command, *words, "--help").code == 0  # with an unknown option it would be 2
        assert all(word in shown.out.partition("Examples")[0] for word in words if word.startswith("--"))


def test_help_names_every_command_and_waits_for_nothing(run):
    assert all(f" {command} " in run("--help").out for command in OPTIONS)
    code = "import sys, relay_hf.cli; sys.exit(' '.join({'torch', 'transformers', 'matplotlib'} & sys.modules.keys()))"
    assert python("-c", code).stderr.strip() == ""


def test_the_library_does_not_load_the_command_line():
    code = "import sys, relay_hf.patching; sys.exit(' '.join({'typer', 'relay_hf.cli'} & sys.modules.keys()))"
    assert python("-c", code).stderr.strip() == ""


def test_version_by_module(run):
    done = python("-m", "relay_hf", "--version")
    assert done.stdout == f"relay_hf {relay_hf.__version__}\n"
    assert run("--version").out == done.stdout


def test_an_unknown_command_is_named_with_the_one_that_was_meant(run):
    done = run("dmo")
    assert done.code == 2
    assert "No such command 'dmo'. Did you mean 'demo'?" in done.error


@pytest.mark.parametrize("command", ["demo", "explain", "bench"])
def test_a_model_that_does_not_exist_is_one_clear_line(run, command, tmp_path):
    said = run(command, "--model", tmp_path).refuses("--model")
    assert "config.json" in said or "Unrecognized model" in said or "not a" in said
    assert REAL_MODEL in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [("explain",), ("bench",)])
@pytest.mark.parametrize("name", ["./absent", "/absent/model", "../absent", "a/b/c", "~/absent"])
def test_a_path_where_no_folder_is_is_called_that(run, command, name):
    said = run(*command, "--model", name).refuses("--model")
    assert f"there is no folder {name}. Give the path of a folder or a Hub id" in said


def test_a_file_in_the_place_of_a_model_is_called_that(run, tmp_path):
    (tmp_path / "file").write_text("")
    said = run("explain", "--tokenizer", tmp_path / "file").refuses("--tokenizer")
    assert f"{tmp_path / 'file'} is no folder. Give" in said
