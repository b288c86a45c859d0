"""The site that `make docs` has built: every page in a browser without a network, as wide as a phone."""

from pathlib import Path

import pytest

from . import browse, findings

SITE = Path(__file__).parents[2] / "docs/_build/html"
# One fault of each kind that findings.py knows.
HEAD = '<!doctype html><title>A page</title><link rel="icon" href="data:,">'
BAD = f"""{HEAD}<body><article>
<h1>One</h1><h3>Three</h3><p>$$\\text{{out}}$$ and `code` and [a](b.md)</p>
<img src="nothing.png" alt="Nothing"><img src="dot.svg" alt="dot.svg"><img src="dot.svg" alt="A dot">
<a href="nothing.html">a</a><a href="#nowhere">b</a><a href="good.html#here">c</a><a href="dot.svg">d</a>
<p style="width: 500px">wide</p>
<pre style="overflow: auto">$$ `as it is` $$ and a line that is wider than any phone is</pre>
<script src="http://example.org/script.js"></script><script>undefined_function()</script>
</article></body>"""
GOOD = f'{HEAD}<body><article><h1 id="here">One</h1></article></body>'
DOT = '<svg xmlns="http://www.w3.org/2000/svg" width="5" height="5"><circle cx="2" cy="2" r="2"/></svg>'


@pytest.fixture(scope="module")
def browser():
    try:
        with browse.phone() as opened:
            yield opened
    except browse.NoBrowser as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="module")
def site(browser):
    """The address of the site, and its pages as they are shown."""
    paths = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    assert "index.html" in paths, "make docs builds the site"
    with browse.served(SITE) as address:
        yield address, browse.show(browser, address, paths)


@pytest.fixture(scope="module")
def bad(browser, tmp_path_factory):
    """The same of a site of two pages, one of which has every fault; and its folder."""
    folder = tmp_path_factory.mktemp("bad")
    for name, text in (("bad.html", BAD), ("good.html", GOOD), ("dot.svg", DOT)):
        (folder / name).write_text(text, encoding="utf-8")
    with browse.served(folder) as address:
        yield address, browse.show(browser, address, ["bad.html", "good.html"]), folder


def test_every_page_was_opened(site):
    _, pages = site
    names = {page.path for page in pages}
    written = {path.stem for path in (SITE.parents[1]).glob("*.md")}
    assert {f"{name}.html" for name in written} <= names
    assert sum(name.startswith("notebooks/") for name in names) >= 3
    assert sum(name.startswith("source/") for name in names) > 200
    assert all(page.facts["title"] for page in pages)


@pytest.mark.parametrize("kind", findings.BY_NAME)
def test_no_page_has_a_fault(site, kind):
    _, pages = site
    # The page of the search has its heading where scripts are off, and its results where they are on.
    assert findings.BY_NAME[kind]([page for page in pages if page.path != "search.html" or kind != "headings"]) == []


def test_links_lead_to_pages_and_places_in_them(site):
    address, pages = site
    assert findings.dead_links(pages, address, SITE) == []


@pytest.fixture
def tab(browser):
    page = browser.new_page()
    yield page
    page.close()


def test_formulas_are_drawn(site, tab):
    address, _ = site
    tab.goto(f"{address}notebooks/how_it_works.html")
    fraction = tab.locator("math mfrac").first
    assert fraction.bounding_box()["height"] > 20  # numerator over denominator
    assert "lse" in fraction.text_content()


def test_the_search_finds_a_page_without_a_network(site, tab):
    address, _ = site
    tab.goto(f"{address}search.html?q=unpatch_model")
    tab.get_by_role("link", name="API").first.wait_for(timeout=10_000)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("problems", ["example.org/script.js", "nothing.png: status 404", "undefined_function is not defined"]),
        ("images", ["not drawn", "no alt text"]),
        ("wide", ["'P : wide'"]),
        ("raw_markup", ["$$"]),
        ("headings", ["h3 after h1: Three"]),
    ],
)
def test_a_fault_is_noticed(bad, kind, said):
    _, pages, _ = bad
    found = findings.BY_NAME[kind](pages)
    assert [each for each in said if not any(each in line for line in found)] == []
    assert not any(line.startswith("good.html") or "as it is" in line for line in found)


def test_a_dead_link_is_noticed(bad):
    address, pages, folder = bad
    assert findings.dead_links(pages, address, folder) == ["bad.html: nothing.html#", "bad.html: bad.html#nowhere"]


def test_a_machine_without_a_browser_is_told_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(browse.NoBrowser, match="apt-get install -y --no-install-recommends chromium"), browse.phone():
        pass
