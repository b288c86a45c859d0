"""Opens pages of a built site in a headless Chromium that reaches this machine alone, and says what each shows."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Request, Response, sync_playwright

FACTS = (Path(__file__).parent / "facts.js").read_text(encoding="utf-8")
PHONE = {"width": 400, "height": 800}
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",  # a container's root has none
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a request that leaves the machine fails
]


class NoBrowser(RuntimeError):
    """There is no Chromium on this machine."""


@dataclass
class Shown:
    """A page as the browser shows it: its path in the site, what went wrong as it loaded, and `facts.js` of it."""

    path: str
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Each request would be a line."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the files of a folder are served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def phone() -> Iterator[BrowserContext]:
    """A browser of its own, whose pages are as wide as a phone.

    Raises:
        NoBrowser: no Chromium is installed.
    """
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise NoBrowser(
            f"the site's tests need a Chromium on PATH, named {' or '.join(_NAMES)}; there is none. "
            "On Debian: apt-get install -y --no-install-recommends chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_FLAGS)
        try:
            yield browser.new_context(viewport=PHONE)
        finally:
            browser.close()


def show(browser: BrowserContext, address: str, paths: list[str]) -> list[Shown]:
    """Open one page after the other in one tab. `address`: of the site; `paths`: of the pages in it."""
    page, now = browser.new_page(), Shown("")

    def failed(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # going on to the next page cuts off a request for the site's icon
            now.problems.append(f"{request.url}: {request.failure}")

    def answered(response: Response) -> None:
        if response.status >= 400:
            now.problems.append(f"{response.url}: status {response.status}")

    page.on("requestfailed", failed)
    page.on("response", answered)
    page.on("pageerror", lambda error: now.problems.append(f"a script raised: {error}"))
    page.on("console", lambda line: line.type == "error" and now.problems.append(f"the console says: {line.text}"))
    found = []
    for path in paths:
        now = Shown(path)
        page.goto(address + path)
        now.facts = page.evaluate(FACTS)
        found.append(now)
    page.close()
    return found
