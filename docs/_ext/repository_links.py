"""Links to files of the repository that are not pages of the site.

Pages link to sources by relative path (`../relay_hf/ops.py`), as a repository host shows them. On the site such a
link leads to a page with the highlighted source, of a package to its `__init__.py`; other files can be downloaded.
Pages that include a file of the repository's root (CHANGELOG.md) have links that are relative to the root; notebooks
are copies of those in examples/, and theirs are relative to it. Entries of the API reference lead to the line of their
definition.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("relay_hf", "benchmarks")  # whose modules have pages


def _page(path: Path) -> str | None:
    """Name of the page of a source file or package, or None where it has none."""
    path = path / "__init__.py" if path.is_dir() else path
    if path.suffix != ".py" or not path.is_file() or not path.is_relative_to(_ROOT):
        return None
    name = path.relative_to(_ROOT)
    return f"source/{name}" if name.parts[0] in _PACKAGES else None


def _resolve_links(app: Sphinx, doctree: nodes.document) -> None:
    for node in [*doctree.findall(addnodes.download_reference), *doctree.findall(addnodes.pending_xref)]:
        if node.get("reftype") != "myst" or node.get("refdomain"):
            continue
        here = Path(app.env.doc2path(app.env.current_document.docname)).parent
        paths = [(base / node["reftarget"]).resolve() for base in (here, _ROOT, _ROOT / "examples")]
        path = next((path for path in paths if path.exists()), None)
        if path is not None:
            node.replace_self(_link(app, node, path))


def _link(app: Sphinx, node: nodes.Element, path: Path) -> nodes.Element:
    docname, page = app.env.current_document.docname, _page(path)
    if page is not None:
        link: nodes.Element = nodes.reference(internal=True, refuri=app.builder.get_relative_uri(docname, page))
    elif (document := app.env.path2doc(path)) in app.env.found_docs:
        link = addnodes.pending_xref(
            refdomain="doc", reftype="myst", reftarget=document, reftargetid=None, refdoc=docname, refexplicit=True
        )
    else:
        target = "/" + os.path.relpath(path, app.srcdir)
        link = addnodes.download_reference(refdomain=None, reftype="myst", reftarget=target, refdoc=docname)
    link.source, link.line = node.source, node.line
    link += node.children
    return link


def _source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            name = str(path.relative_to(_ROOT))
            code = app.builder.highlighter.highlight_block(
                path.read_text(encoding="utf-8"), "python", lineanchors="line"
            )
            yield f"source/{name}", {"title": name, "body": f"<h1>{name}</h1>\n{code}"}, "page.html"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where an entry of the API reference is defined, for `sphinx.ext.linkcode`; relative to the site's root."""
    found: Any = importlib.import_module(info["module"])
    for name in info["fullname"].split("."):
        found = getattr(found, name, None)
    found = inspect.unwrap(found.fget if isinstance(found, property) else found)
    page = _page(Path(inspect.getsourcefile(found))) if callable(found) else None
    return page and f"{page}.html#line-{inspect.getsourcelines(found)[1]}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx; before what is downloaded is collected, at priority 500."""
    app.connect("doctree-read", _resolve_links, priority=400)
    app.connect("html-collect-pages", _source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
