"""What is wrong with pages that the browser has shown, a line a fault. A kind of fault is a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote, urldefrag

from .browse import PHONE, Shown


def problems(pages: Iterable[Shown]) -> list[str]:
    """Requests that failed or left the machine, scripts that raised, errors on the console."""
    return [f"{page.path}: {each}" for page in pages for each in page.problems]


def dead_links(pages: Iterable[Shown], address: str, folder: Path) -> list[str]:
    """Links into the site that lead to no file of it, or to no place of a page. `folder`: of the site's files."""
    ids = {page.path: {*page.facts["ids"]} for page in pages}
    dead = []
    for page in pages:
        for link in page.facts["links"]:
            target, fragment = map(unquote, urldefrag(link))
            if not target.startswith(address):
                continue
            path = target.removeprefix(address)
            if not (folder / path).is_file() or (path in ids and fragment and fragment not in ids[path]):
                dead.append(f"{page.path}: {path}#{fragment}")
    return dead


def images(pages: Iterable[Shown]) -> list[str]:
    """Images that are not drawn, or of which nothing is said but the name of a file."""
    found = []
    for page in pages:
        for image in page.facts["images"]:
            if not image["drawn"]:
                found.append(f"{page.path}: not drawn: {image['source']}")
            elif not image["alt"].strip() or image["alt"].endswith((".png", ".svg")):
                found.append(f"{page.path}: no alt text: {image['source']}")
    return found


def wide(pages: Iterable[Shown]) -> list[str]:
    """Pages that are wider than a phone, with the elements that reach over its edge."""
    return [f"{page.path}: {page.facts['wide']}" for page in pages if page.facts["width"] > PHONE["width"]]


def raw_markup(pages: Iterable[Shown]) -> list[str]:
    """TeX and Markdown in what is read."""
    return [f"{page.path}: {text}" for page in pages for text in page.facts["raw"]]


def headings(pages: Iterable[Shown]) -> list[str]:
    """Pages without one heading of the first level before all others, and headings that leave out a level."""
    found = []
    for page in pages:
        levels = [level for level, _ in page.facts["headings"]]
        if levels[:1] != [1] or levels.count(1) != 1:
            found.append(f"{page.path}: the levels of its headings are {levels}")
        for (before, _), (level, text) in zip(page.facts["headings"], page.facts["headings"][1:], strict=False):
            if level > before + 1:
                found.append(f"{page.path}: h{level} after h{before}: {text}")
    return found


BY_NAME: dict[str, Callable[[Iterable[Shown]], list[str]]] = {
    each.__name__: each for each in (problems, images, wide, raw_markup, headings)
}
