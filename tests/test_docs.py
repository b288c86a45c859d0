"""The documentation holds: its code runs, its commands exist, and what it says of options and results is so."""

import contextlib
import dataclasses
import doctest
import importlib
import importlib.util
import io
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import relay_hf
from benchmarks.document.markdown import result
from benchmarks.document.pages import filled, pages

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
# Each is run (python), held to what is there (bash), compared with what a block printed (text), or no code.
LANGUAGES = {"python", "bash", "text", "bibtex"}
EXAMPLES = [path for path in (ROOT / "relay_hf").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]


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
            found.append(Block(token.info.strip(), token.content, token.map[0], before in ("fence", "code_block")))
        before = token.type
    return found


def blocks(page: str) -> list[Block]:
    return blocks_of((ROOT / page).read_text(encoding="utf-8"))


def run(found: list[Block], name: str) -> None:
    """Run Python blocks in one namespace, and hold a text block that follows one to what it printed."""
    namespace: dict = {"__name__": "__main__"}
    printed = ""
    for block in found:
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * (block.line + 1) + block.text, name, "exec"), namespace)
            printed = out.getvalue()
        elif block.language == "text" and block.follows:
            assert printed == block.text, f"{name}, line {block.line + 1}"


WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


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
    """Directives of the site (```{toctree}) are no code."""
    strange = {block.language for block in blocks(page) if not block.language.startswith("{")} - LANGUAGES
    assert not strange


def test_an_indented_block_and_one_in_a_list_are_seen():
    assert [block.language for block in blocks_of("text\n\n    code\n\n- item\n\n  ```sh\n  ls\n  ```\n")] == ["", "sh"]


def refused(command: str) -> str | None:
    """Why a line of a bash block can't be what it says, or None."""
    words = shlex.split(command, comments=True)
    match words:
        case []:
            return None
        case ["make", target, *_]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            return None if target in known else f"no target {target}"
        case [python, "-m", module, *arguments] if Path(python).name in ("python", "python3"):
            return refused_module(module, arguments)
        case [program, path, *_] if Path(program).name in ("python", "bash"):
            return None if (ROOT / path).is_file() else f"no file {path}"
        case ["pip", "install", "."]:
            return None
    return f"no command known: {command}"


def refused_module(name: str, arguments: list[str]) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"no module {name}"
    if not (ROOT / name.split(".")[0]).is_dir():
        return None
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
        (".venv/bin/python -m benchmarks.cpu --nothing", "benchmarks.cpu takes no --nothing"),
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


def test_the_first_example_of_the_readme_is_relayed():
    namespace: dict = {}
    exec(next(block.text for block in blocks("README.md") if block.language == "python"), namespace)
    report = namespace["model"].relay.last
    assert report.relayed, report
    assert report.prefix_length == 256


OPTIONS = [
    (field.name, json.dumps(field.default) if isinstance(field.default, str) else repr(field.default))
    for field in dataclasses.fields(relay_hf.RelayConfig)
]


@pytest.mark.parametrize(
    ("page", "pattern"),
    [
        ("docs/options.md", r"^## `(\w+)`\n\nDefault: `(.+)`$"),
        ("README.md", r"^\| `(\w+)` \| `?([^`|]+?)`? \| "),
    ],
    ids=["page", "readme"],
)
def test_options_and_defaults_are_those_of_the_code(page, pattern):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert sorted(re.findall(pattern, text, re.MULTILINE)) == sorted(OPTIONS)


def test_the_reference_has_all_that_is_exported():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert [name for name in relay_hf.__all__ if f"relay_hf.{name}" not in text] == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_tables_are_what_the_results_give(path):
    text = path.read_text(encoding="utf-8")
    assert filled(text) == text, "python -m benchmarks.document --write writes it anew"


def test_where_nothing_is_shared_no_call_takes_more_than_the_page_says():
    assert "more\nthan 3% of a call" in (ROOT / "docs/when-it-helps.md").read_text(encoding="utf-8")
    ratios = [cell["over_stock"] for cell in result("grid_nothing_shared")["grid"]]
    assert max(each["ratio"] for cell in ratios for each in cell.values()) <= 1.03


def test_a_table_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match=r"a page's table must be one of headline, .*; got 'nothing'"):
        filled("<!-- table: nothing -->\n<!-- end -->\n")


def test_the_citation_is_of_this_version_and_of_the_papers_that_the_docs_name():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == relay_hf.__version__
    page = (ROOT / "docs/citation.md").read_text(encoding="utf-8")
    for paper in citation["references"]:
        assert paper["url"] in page
        assert all(author["family-names"] in page for author in paper["authors"])
