"""The structure of the package, as far as import-linter does not hold it: sizes, names, and who knows whom.

`make lint` holds the arrows: no module imports from a layer above its own or beside it, and there is no circle.
"""

import ast
import dataclasses
import re
import statistics
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import relay_hf
from relay_hf.report import Explanation, RelayReport

PACKAGE = Path(relay_hf.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
LINES = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}

PUBLIC_RECORDS = {"RelayReport", "Explanation"}
# What takes the operator's own arguments, one by one, and kernels.
OPERATOR = re.compile(r"kernels/|^ops\.py$|^cli/")


def where(file):
    return file.relative_to(PACKAGE).as_posix()


def definitions(kind):
    return [(file, node) for file, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kind)]


def test_a_newcomer_sees_few_rooms():
    modules = [file for file in PACKAGE.iterdir() if file.suffix == ".py"]
    packages = [folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()]
    assert len(modules) <= 10, sorted(map(where, modules))
    assert len(packages) <= 11, sorted(map(where, packages))


def test_files_are_short():
    assert {where(file): count for file, count in LINES.items() if count > 400} == {}
    assert statistics.median(LINES.values()) < 150
    assert sum(LINES.values()) <= 22_240  # it goes down, not up


def test_every_module_says_what_it_is_on_its_first_line():
    silent = [where(file) for file, tree in TREES.items() if not (ast.get_docstring(tree) or "").strip()]
    assert silent == []


def test_no_two_classes_have_one_name():
    names = Counter(node.name for _, node in definitions(ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_name_stands_twice_in_a_package():
    """But for the backends of the operator, which mirror each other."""
    for package in (folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()):
        names = Counter(
            file.name
            for file in package.rglob("*.py")
            if file.name != "__init__.py" and file.parent.parent.name != "kernels"
        )
        assert [name for name, count in names.items() if count > 1] == [], package


def test_no_function_takes_more_than_eight_arguments():
    long = []
    for file, node in definitions(ast.FunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([each for each in arguments if each.arg not in ("self", "cls")])
        if count > 8 and not OPERATOR.search(where(file)):
            long.append((where(file), node.name, count))
    assert long == []


def test_no_dataclass_has_more_than_twelve_fields():
    long = []
    for file, node in definitions(ast.ClassDef):
        if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            count = sum(isinstance(each, ast.AnnAssign) for each in node.body)
            if count > 12 and node.name not in PUBLIC_RECORDS:
                long.append((where(file), node.name, count))
    assert long == []
    assert {RelayReport.__name__, Explanation.__name__} == PUBLIC_RECORDS
    assert all(map(dataclasses.is_dataclass, (RelayReport, Explanation)))


def test_the_handle_is_passed_to_nobody():
    """It composes; what it composes is told what it needs."""
    knowing = {where(file) for file, tree in TREES.items() for node in ast.walk(tree) if named(node, "Relay")}
    assert {file for file in knowing if not file.startswith("cli/")} <= {"relay.py", "patching.py"}


def named(node, name):
    imported = isinstance(node, ast.ImportFrom) and name in {each.name for each in node.names}
    return imported or (isinstance(node, ast.Name) and node.id == name)


def test_only_generation_makes_and_writes_a_call():
    knowing = {where(file) for file, tree in TREES.items() for node in ast.walk(tree) if named(node, "GenerateCall")}
    assert {file for file in knowing if not file.startswith("generation/")} == set()


def contract():
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return next(each["layers"] for each in contracts if each["id"] == "layers")


def test_the_map_for_contributors_is_the_contract():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = re.search(r"```text\n(.*?)```", page, flags=re.DOTALL).group(1)
    rows = [re.split(r"\s{2,}", line.strip())[0] for line in drawn.splitlines() if line.strip()]
    assert rows == contract()


def test_the_glossary_has_thirty_lines_at_most():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    glossary = page.split("## Glossary\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `?([^|`]+)`? \|", glossary, flags=re.MULTILINE)
    assert 10 < len(rows) <= 32  # with the head and its rule


@pytest.mark.parametrize("layer", [name for row in contract() for name in row.split(" | ")])
def test_every_layer_of_the_contract_is_there(layer):
    assert (PACKAGE / f"{layer}.py").exists() != (PACKAGE / layer / "__init__.py").exists()
