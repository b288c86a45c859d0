"""All code of the documentation runs, and its commands exist."""

import contextlib
import doctest
import importlib
import importlib.util
import io
import re
import shlex
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.main import get_command

from benchmarks.cpu.command import app as cpu_benchmark
from benchmarks.peers.command import app as peers_benchmark
from relay_hf import showcase
from relay_hf.cli.app import app
from relay_hf.showcase import path_of

ROOT = Path(__file__).parents[2]
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]
# Each is run (python), held to what is there (bash), compared with what a block printed (text), or no code; those in
# braces are directives of the site.
LANGUAGES = {"python", "bash", "text", "bibtex", "{eval-rst}", "{include}", "{toctree}"}
EXAMPLES = sorted(p for p in (ROOT / "relay_hf").rglob("*.py") if ">>> " in p.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Block:
    """A block of code: what its fence says it is, its text, the line where it begins, whether it follows another."""

    language: str
    text: str
    line: int
    follows: bool


def blocks_of(text: str) -> list[Block]:
    """All of them, indented ones (of language "") and those in lists too."""
    found, before = [], None
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block"):
            language = token.info.split()[0] if token.info.strip() else ""
            found.append(Block(language, token.content, token.map[0], before in ("fence", "code_block")))
        before = token.type
    return found


def blocks(page: str) -> list[Block]:
    return blocks_of((ROOT / page).read_text(encoding="utf-8"))


def run(found: list[Block], name: str, namespace: dict | None = None) -> None:
    """Run Python blocks in one namespace, and hold a text block that follows one to what it printed."""
    namespace = {"__name__": "__main__"} if namespace is None else namespace
    printed = ""
    for block in found:
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * (block.line + 1) + block.text, name, "exec"), namespace)
            printed = out.getvalue()
        elif block.language == "text" and block.follows:
            assert printed == block.text, f"{name}, line {block.line + 1}"


WITH_PYTHON = [page for page in PAGES[1:] if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run_and_print_what_the_page_says(page):
    run(blocks(page), str(ROOT / page))


def test_output_that_is_not_what_a_block_prints_is_noticed():
    page = "```python\nprint(1)\n```\n\n```text\n{}\n```\n"
    run(blocks_of(page.format("1")), "a page")
    with pytest.raises(AssertionError, match="a page, line 5"):
        run(blocks_of(page.format("2")), "a page")


@pytest.mark.parametrize("page", PAGES)
def test_no_block_escapes_by_its_fence(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES


def test_an_indented_block_and_one_in_a_list_are_seen():
    assert [block.language for block in blocks_of("text\n\n    code\n\n- item\n\n  ```sh\n  ls\n  ```\n")] == ["", "sh"]


def refused(command: str) -> str | None:
    """Why a line of a bash block can't be what it says, or None."""
    words = shlex.split(command, comments=True)
    match words:
        case []:
            return None
        case ["make", target, *_]:
            known = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            return None if target in known else f"no target {target}"
        case [_, "-m", "benchmarks.cpu", *arguments]:
            return refused_option("benchmarks.cpu", get_command(cpu_benchmark).params, arguments)
        case [_, "-m", "benchmarks.peers", *arguments]:
            return refused_option("benchmarks.peers", get_command(peers_benchmark).params, arguments)
        case [python, "-m", module, *arguments] if Path(python).name in ("python", "python3"):
            return refused_module(module, arguments)
        case [program, path, *_] if Path(program).name in ("python", "bash"):
            return None if (ROOT / path).is_file() else f"no file {path}"
        case ["cat", _, "|", *rest]:
            return refused(shlex.join(rest))
        case ["pip", "install", "."]:
            return None
        case [program, name, *arguments] if Path(program).name == "relay-hf":
            return refused_command(name, arguments)
    return f"no command known: {command}"


def refused_command(name: str, arguments: list[str]) -> str | None:
    """Of the command line."""
    command = get_command(app).commands.get(name)
    if command is None:
        return f"relay-hf has no {name}"
    return refused_option(f"relay-hf {name}", command.params, arguments)


def refused_option(name: str, parameters: list, arguments: list[str]) -> str | None:
    """Of a command of typer's."""
    options = {option for parameter in parameters for option in parameter.opts}
    unknown = [word for word in arguments if word.startswith("--") and word not in options]
    return f"{name} takes no {unknown[0]}" if unknown else None


def refused_module(name: str, arguments: list[str]) -> str | None:
    if not (ROOT / name.split(".")[0]).is_dir():
        # Not importlib.util's: looking for pip there takes setuptools' distutils away from the whole process.
        return None if PathFinder.find_spec(name.split(".")[0]) else f"no module {name}"
    if importlib.util.find_spec(name) is None:
        return f"no module {name}"
    spec = importlib.util.find_spec(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)
    code = Path(spec.origin).read_text(encoding="utf-8")
    unknown = [word for word in arguments if word.startswith("--") and f'"{word}"' not in code]
    return f"{name} takes no {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    lines = [line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()]
    assert [why for why in map(refused, lines) if why] == []


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("make nothing", "no target nothing"),
        ("python -m benchmarks.nothing", "no module benchmarks.nothing"),
        ("python -m nothing", "no module nothing"),
        (".venv/bin/python -m benchmarks.grid --nothing", "benchmarks.grid takes no --nothing"),
        (".venv/bin/relay-hf nothing", "relay-hf has no nothing"),
        ("relay-hf bench --nothing", "relay-hf bench takes no --nothing"),
        (".venv/bin/python -m benchmarks.cpu C1 --nothing", "benchmarks.cpu takes no --nothing"),
        (".venv/bin/python -m benchmarks.peers C1 --nothing", "benchmarks.peers takes no --nothing"),
        (".venv/bin/python examples/nothing.py", "no file examples/nothing.py"),
        ("nothing", "no command known: nothing"),
    ],
)
def test_a_command_that_there_is_not_is_noticed(command, why):
    assert refused(command) == why


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_run(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted > 0
    assert done.failed == 0
    assert "doctest: +SKIP" not in path.read_text(encoding="utf-8")


@pytest.fixture
def downloaded(monkeypatch):
    """The chat model under its name on the Hub, as if it had been downloaded from there."""
    folder = path_of(showcase.CHAT_MODEL)

    def stand_in(kind):
        there = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda name, **how: there(folder, **how))

    for kind in (AutoModelForCausalLM, AutoTokenizer):
        stand_in(kind)


def test_the_readmes_code_runs_and_its_first_example_is_relayed_on_a_real_model(downloaded, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it writes a file
    # All of the system prompt takes half a minute here.
    monkeypatch.setattr(showcase, "SYSTEM_PROMPT", "\n## ".join(showcase.SYSTEM_PROMPT.split("\n## ")[:2]))
    first, *others = [block for block in blocks("README.md") if block.language == "python"]
    namespace: dict = {}
    run([first], "README.md", namespace)
    report = namespace["model"].relay.last
    assert report.relayed, report
    assert report.prefix_length > 250
    run(others, "README.md", namespace)
    assert not hasattr(namespace["model"], "relay")
