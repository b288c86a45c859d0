"""The command line as a shell has it: a full disk, a closed pipe, and the completion of words."""

import os
import subprocess
import sys

import pytest

from relay_hf.cli.benchmark import arguments, contenders

# Output of every kind that commands have, by what they all print with; no command as such is fast enough.
PROGRAM = """
import sys, typer
from relay_hf.cli.console import output, print_json, run_app

app = typer.Typer()

@app.command()
def write(kind: str, lines: int = 1) -> None:
    for _ in range(lines):
        output().print("text") if kind == "text" else print_json({"a": "b" * 1000})
    if kind == "other":
        raise OSError(28, "of something else", "a file")

run_app(app, "program")
"""


def shell(line, python=(), **environment):
    """A shell's command line, in which $PROGRAM is the program above."""
    program = " ".join((sys.executable, *python, "-c", '"$CODE"'))
    return subprocess.run(
        ["bash", "-c", line.replace("$PROGRAM", program).replace("$RELAY", f"{sys.executable} -m relay_hf")],
        env=os.environ | {"CODE": PROGRAM} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("python", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("kind", ["text", "json", "--help"])
def test_a_full_disk_is_one_line_and_exit_code_1(kind, python):
    done = shell(f"$PROGRAM {kind} > /dev/full", python)
    assert done.stderr == "program: standard output can't be written: No space left on device.\n"
    assert done.returncode == 1


@pytest.mark.parametrize("python", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("kind", ["text --lines 10000", "json --lines 1000"])
def test_a_closed_pipe_is_quiet(kind, python):
    done = shell(f"set -o pipefail; $PROGRAM {kind} | head -1", python)
    assert (done.returncode, done.stderr) == (1, "")
    assert len(done.stdout.splitlines()) == 1


def test_the_command_line_is_run_like_this():
    done = shell("$RELAY --help > /dev/full")
    assert done.stderr == "relay-hf: standard output can't be written: No space left on device.\n"


def test_an_error_of_something_else_stays_one():
    done = shell("$PROGRAM other")
    assert "of something else" in done.stderr
    assert "standard output" not in done.stderr


def completed(*words):
    """What is offered for the last of the words."""
    done = shell(
        "$RELAY", _RELAY_HF_COMPLETE="complete_bash", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1)
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_can_be_installed_and_knows_commands_and_values(tmp_path):
    done = shell("$RELAY --install-completion; exit $?", HOME=str(tmp_path), SHELL="/bin/bash")
    assert done.returncode == 0, done.stderr
    (script,) = tmp_path.glob(".bash_completions/*")
    assert "_RELAY_HF_COMPLETE=complete_bash" in script.read_text()
    assert completed("relay-hf", "be") == ["bench"]
    assert completed("relay-hf", "bench", "--contenders", "stock,rel") == ["stock,relay-cold", "stock,relay-kept"]


def test_completion_waits_for_nothing():
    code = "from relay_hf.cli.app import main; import atexit, sys; atexit.register(lambda: sys.stderr.write("
    code += "' '.join({'torch', 'transformers'} & sys.modules.keys()))); main()"
    words = {"COMP_WORDS": "relay-hf bench --contenders s", "COMP_CWORD": "3", "_RELAY_HF_COMPLETE": "complete_bash"}
    done = shell(f'{sys.executable} -c "$MAIN"', MAIN=code, **words)
    assert (done.stdout.split(), done.stderr) == (["stock", "static-cache"], "")


def test_every_contender_is_offered():
    assert list(contenders.CONTENDERS) == list(arguments.NAMES) == arguments.complete_contenders("")
    assert arguments.complete_contenders("relay-cold,relay-") == ["relay-cold,relay-kept"]
