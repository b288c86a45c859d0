"""The notebooks in examples/: each runs from a clean kernel, and what is committed is what it gives."""

import re

import nbformat
import pytest

from relay_hf.showcase.smollm2 import NAME
from tests.notebooks.execute import NOTEBOOKS, execute

# What does not depend on the machine: counts of tokens and bytes, and whether results are the same.
FACTS = re.compile(
    r"identical \w+: \w+|equal up to rounding in float64: \w+|\d+ prompts of up to \d+ tokens"
    r"|^ *\d+ tokens, .*$|RelayReport\(.*\)$|^(?:would be )?relayed: .*$"
    r"|^  (?:reason code|shared|prompt tokens|KV|backend): .*$|^.*: left to stock: .*$|^.*(?: tokens stored)$",
    re.MULTILINE,
)
ABSOLUTE_PATH = re.compile(r"(?:^|[\s'\"(=])(?:/\w[\w.-]*/|[A-Z]:\\)|site-packages|~/", re.MULTILINE)
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """Of a cell's outputs: a stream's name, or the formats of a result."""
    return [output.get("name") or sorted(output.data) for output in cell.outputs]


def text(cell):
    return "\n".join(output.get("text") or output.data.get("text/plain", "") for output in cell.outputs)


def facts(notebook):
    return [FACTS.findall(text(cell)) for cell in code_cells(notebook)]


@each_notebook
def test_it_runs_from_a_clean_kernel_and_its_committed_outputs_hold(path):
    committed, fresh = nbformat.read(path, as_version=4), execute(path)
    assert [kinds(cell) for cell in code_cells(committed)] == [kinds(cell) for cell in code_cells(fresh)]
    assert facts(committed) == facts(fresh)
    stated = [fact for cell in facts(fresh) for fact in cell]
    assert any(fact.startswith("identical") and fact.endswith("True") for fact in stated)
    assert not [fact for fact in stated if fact.endswith(": False")]


@each_notebook
def test_what_is_committed_is_of_one_clean_run_and_speaks_of_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata == METADATA
    for cell in notebook.cells:  # of a picture the site has words, and nothing else is kept of a cell
        pictures = [each for each in cell.get("outputs", []) if "image/png" in each.get("data", {})]
        assert list(cell.metadata) == (["mystnb"] if pictures else [])
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [text(cell) for cell in cells if ABSOLUTE_PATH.search(text(cell))]


@each_notebook
def test_it_says_what_the_model_is_right_before_the_cell_that_names_it(path):
    cells = nbformat.read(path, as_version=4).cells
    first = next(place for place, cell in enumerate(cells) if cell.cell_type == "code")
    assert cells[first].source == f'MODEL = "{NAME}"  # or "random", a Hub id, the path of a folder'
    said = "".join(cell.source for cell in cells[:first])
    assert f"{NAME}, which `make demo` downloads" in said
    assert "its advice is not to be followed" in said
