"""Makes the screenshots of the docs: `python docs/screenshots/make.py LINK SEARCH`.

LINK is what `pareto-search serve` prints, token included, and SEARCH the id of a search that has ended there. An entry
of it is deployed, and the deployment deleted again.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image  # comes with sentence-transformers
from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parent
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
USER = "42"


def main(link: str, search: str) -> None:
    """Walks through the page, in light and in dark, on a wide and on a narrow window."""
    service = link.partition("#")[0]
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        with opened(browser, link, WIDE) as page:
            page.goto(f"{service}#/search/{search}")
            page.wait_for_selector("#selected")
            page.locator("#weight-1").press("End")
            for _ in range(40):
                page.locator("#bound-0").press("ArrowRight")
            page.wait_for_timeout(1000)
            page.click("#compare-selected")
            page.locator("#entries tbody input").first.check()
            show(page, "body")
            shot(page, "select")
            page.fill("#previews [name=user]", USER)
            page.click("#preview")
            page.wait_for_selector("#previews ol.items >> nth=1")
            show(page, "#parallel")
            shot(page, "lines")
            show(page, "#previews")
            shot(page, "lists")
            page.click("#deploy")
            page.wait_for_selector(".deployment .state:text-is('serving')")
            page.click(".try")
            page.wait_for_selector("tr:has-text('a canary')")
            page.wait_for_selector(".deployment .state:text-is('serving')")
            page.fill(".deployment [name=user]", USER)
            page.click(".ask")
            page.wait_for_selector(".deployment ol.items")
            shot(page, "deploy")
        with opened(browser, link, WIDE, color_scheme="dark") as page:
            page.goto(f"{service}#/search/{search}")
            page.wait_for_selector("#selected")
            page.select_option("select >> nth=2", index=3)
            shot(page, "dark")
        with opened(browser, link, PHONE, color_scheme="dark") as page:
            page.goto(f"{service}#/deployments")
            page.wait_for_selector(".deployment .ask")
            shot(page, "phone")
            page.on("dialog", lambda dialog: dialog.accept())
            page.click(".deployment button:text-is('Delete')")
            page.wait_for_selector(".empty")
        browser.close()


@contextmanager
def opened(browser: Browser, link: str, window: dict[str, int], **options: Any) -> Iterator[Any]:
    """The page of a new visitor."""
    page = browser.new_context(viewport=window, **options).new_page()
    page.set_default_timeout(300_000)
    page.goto(link)
    page.wait_for_selector("#launch")
    yield page
    page.close()


def show(page: Any, selector: str) -> None:
    """Scrolls so that it is at the top of the window, with its heading."""
    page.evaluate("s => scrollTo(0, document.querySelector(s).getBoundingClientRect().top + scrollY - 110)", selector)


def shot(page: Any, name: str) -> None:
    """A PNG of few colours, which the page has."""
    page.wait_for_timeout(800)  # until what moves has come to rest
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
