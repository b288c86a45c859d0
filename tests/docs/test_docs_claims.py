"""What the documentation says of options, exports, results and papers is so."""

import dataclasses
import json
import re
import runpy
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import relay_hf
from benchmarks.document import model_types
from benchmarks.document.markdown import result
from benchmarks.document.pages import filled, pages
from relay_hf.model.upstream.names import CACHE
from relay_hf.reasons import Reason
from tests.fuzz_files import case
from tests.stale import mutations, test_adapters, test_during
from tests.support.sizes import UNBUILDABLE
from tests.support.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# All that a reader may find figures in.
TEXTS = [*PAGES, *sorted((ROOT / "examples").glob("*.[im]*")), *sorted((ROOT / "relay_hf").rglob("*.py"))]
OPTIONS = [
    (field.name, json.dumps(field.default) if isinstance(field.default, str) else repr(field.default))
    for field in dataclasses.fields(relay_hf.RelayConfig)
]


def test_options_and_defaults_are_those_of_the_code():
    text = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^## `(\w+)`\n\nDefault: `(.+)`$", text, re.MULTILINE)) == sorted(OPTIONS)


def test_the_reference_has_all_that_is_exported():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert [name for name in relay_hf.__all__ if f"relay_hf.{name}" not in text] == []


def test_the_handle_shows_what_the_reference_has_and_no_more():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    own = text.partition(".. py:class:: Relay\n")[2].partition("```")[0]
    documented = re.findall(
        r"^   \.\. (?:py:attribute::|auto\w+::) (?:relay_hf\.relay\.Relay\.)?(\w+)$", own, re.MULTILINE
    )
    model = relay_hf.patch_model(tiny_model("llama"))
    assert {"config", "last", "warm"} <= set(documented)
    assert sorted(documented) == [name for name in dir(model.relay) if not name.startswith("_")]


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_tables_are_what_the_results_give(path):
    text = path.read_text(encoding="utf-8")
    assert filled(text) == text, "python -m benchmarks.document --write writes it anew"


TYPES = model_types.counted()
SAID_OF_TYPES = [
    re.compile(pattern)
    for pattern in (
        r"(\d+) (?:causal )?(?:language )?(?:model )?types\b",
        r"(\d+) of (?:Transformers' )?\d+ (?:causal )?(?:language )?(?:model )?types\b",
        r"\btypes (\d+) are relayed",
        r"\bmodel types .*\| (\d+) \|",  # in a table
    )
]


def said_of_types(text: str) -> set[int]:
    """Counts of model types that a text names."""
    return {int(count) for pattern in SAID_OF_TYPES for count in pattern.findall(text)}


def test_the_page_of_model_types_counts_its_rows():
    assert TYPES.all == len(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    assert TYPES.untried == len(UNBUILDABLE)
    assert f"\n\n{TYPES}\n\n" in model_types.PAGE.read_text(encoding="utf-8"), "python -m tests.models writes it anew"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_counts_of_model_types_are_those_of_their_page(path):
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8")) if path.suffix == ".py" else path.read_text("utf-8")
    assert said_of_types(text) <= {TYPES.all, TYPES.tried, TYPES.relayed}


def test_an_old_count_of_model_types_is_noticed():
    assert said_of_types("Of 189 causal model types 159 are relayed") == {189, 159}
    assert said_of_types("166 of 186 model types, | model types called | 192 |") == {166, 186, 192}


def test_the_demos_picture_is_of_the_committed_run():
    drawn = runpy.run_path(str(ROOT / "docs/figures/demo.py"))["draw"]()
    assert (ROOT / "docs/figures/demo.svg").read_text(encoding="utf-8") == drawn, "make tables writes it anew"
    assert "https://" not in drawn.replace("https://www.textualize.io", "")  # a page must fetch nothing
    found = result("demo")
    assert found["same_tokens"]
    for row, each in enumerate(found["answers"]):
        assert each["stock"] == each["relay_hf"], row
    stock, first, kept = (run["seconds"] for run in found["runs"])
    assert stock + first + kept < 90


def test_where_nothing_is_shared_no_call_takes_more_than_the_page_says():
    assert "more\nthan 3% of a call" in (ROOT / "docs/when-it-helps.md").read_text(encoding="utf-8")
    ratios = [cell["over_stock"] for cell in result("grid_nothing_shared")["grid"]]
    assert max(each["ratio"] for cell in ratios for each in cell.values()) <= 1.03


def test_the_reasons_of_the_faq_are_those_of_the_table():
    """Each phrase, up to its dots, is how a reason of that source begins, up to its own first gap."""
    text = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`.*) \| (call|model|transformers) \| ", text, re.MULTILINE)
    assert len(rows) > 20
    # What shows in a forward has its words there.
    unfit = (ROOT / "relay_hf/attention/forward.py").read_text(encoding="utf-8")
    for phrases, source in rows:
        begins = [
            each.words.replace("{kind}", "a StaticCache").partition("{") for each in Reason if each.source == source
        ]
        begins += [("output_attentions=True", "", ""), ("output_hidden_states=True", "", ""), (CACHE, "", "")]
        for phrase in re.findall(r"`([^`]+)`", phrases):
            said = phrase.partition("...")[0].strip()
            known = any(start and (start.startswith(said) or said.startswith(start)) for start, _, _ in begins)
            assert known or said in unfit or said.startswith("layer"), (phrase, source)


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


def dead_links(text: str, page: Path) -> list[str]:
    """Relative links, and images, that lead to no file or, in a Markdown file, to no heading of it."""
    tokens = [child for token in MarkdownIt().enable("table").parse(text) for child in token.children or ()]
    links = [
        str(token.attrGet("href") or token.attrGet("src")) for token in tokens if token.type in ("link_open", "image")
    ]
    dead = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            dead.append(link)
    return dead


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as repository hosts and the site make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    assert dead_links(page.read_text(encoding="utf-8"), page) == []


def test_a_link_that_leads_nowhere_is_noticed():
    links = "[a](faq.md) [b](nothing.md) [c](faq.md#nothing) | [d](../relay_hf/ops.py) ![e](nothing.svg)"
    table = "| a |\n|---|\n| [f](nothing) |\n"
    dead = dead_links(f"{links}\n\n{table}", ROOT / "docs/faq.md")
    assert dead == ["nothing.md", "faq.md#nothing", "nothing.svg", "nothing"]


def test_the_page_on_reliability_counts_what_is_tried():
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    counts = [int(count) for count in re.findall(r"^\| .* \| (\d+) \| ", text, re.MULTILINE)]
    tables = [mutations.WEIGHTS, mutations.STRUCTURE, mutations.SETTINGS, mutations.WINDOWED, mutations.OWN]
    assert counts == [*map(len, tables), len(test_during.CHANGES), len(test_adapters.CHANGES)]
    assert f"from {len(case.KINDS)} kinds of damage" in text
