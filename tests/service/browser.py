"""A real browser for tests of the page, and a stage on which they play the service themselves."""

import json
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from running import PATIENCE

from pareto_search.service.app import ASSETS
from pareto_search.service.guard import HEADERS

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=[*QUIET, "--enable-unsafe-swiftshader"])
        yield browser
        browser.close()


SILENT = 0
"""The status of who does not answer."""


class Stage:
    """The page before a service that a test plays: what happens seldom, or at no moment that one could wait for.

    Attributes:
        says: by method and path: what is answered, a status that refuses, or what makes either of the request's body.
            Events are told once a second, as the page comes back whenever they end.
        heard: the requests, the latest last.
    """

    def __init__(self, chromium: Any, says: dict[str, Any]) -> None:
        self.says, self.heard = says, list[tuple[str, Any]]()
        self.page = chromium.new_context(viewport={"width": 1280, "height": 860}).new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.route("**/*", self._answer)

    def open(self, view: str = "") -> Any:
        """The page at a view."""
        self.page.goto("http://page.test/#token=any")
        if view:
            self.page.goto(f"http://page.test/#/{view}")
        return self.page

    def to(self, asked: str) -> list[Any]:
        """The requests of one method and path."""
        return [request for what, request in self.heard if what == asked]

    def _answer(self, route: Any) -> None:
        path = urlsplit(route.request.url).path
        if file := ASSETS.get("/static/index.html" if path == "/" else path):
            return route.fulfill(path=file, headers=HEADERS)
        asked = f"{route.request.method} {path.removeprefix('/v1')}"
        self.heard.append((asked, route.request))
        said = self.says.get(asked, 404)
        if callable(said):
            said = said(route.request.post_data_json)
        if said == SILENT:
            return route.abort("connectionrefused")
        if isinstance(said, int):
            return route.fulfill(status=said, json={"error": f"it is refused with {said}"})
        if path.endswith("/events"):
            return route.fulfill(body=f"data: {json.dumps(said)}\n\n", content_type="text/event-stream")
        return route.fulfill(json=said)
