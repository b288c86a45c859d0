"""What the documentation says of options, exports, results and papers is so."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

import relay_hf
from benchmarks.document.markdown import result
from benchmarks.document.pages import filled, pages

ROOT = Path(__file__).parents[1]
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
