"""The page in a real browser: from launching a search to what an entry recommends that a slider selects and that is
deployed. Where PARETO_SEARCH_SCREENSHOTS names a folder, each step leaves a picture there."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from browser import chromium, needs_browser
from conftest import Shared
from running import PATIENCE
from serving import TOKEN

from pareto_search import decide
from pareto_search.objective import Constraint, Objective
from pareto_search.service.record import Job, Record

pytestmark = needs_browser
__all__ = ["chromium"]


def opened(chromium: Any, shared: Shared, **options: Any) -> tuple[Any, list[str]]:
    """The page, and what goes wrong on it."""
    page = chromium.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE * 1000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(shared.service.address) or wrong.append(asked.url))
    page.goto(f"{shared.service.address}#token={TOKEN}")
    page.wait_for_selector("#launch")
    return page, wrong


def shot(page: Any, name: str) -> None:
    """A screenshot for people."""
    if folder := os.environ.get("PARETO_SEARCH_SCREENSHOTS"):
        page.wait_for_timeout(500)  # until what moves has come to rest
        page.screenshot(path=Path(folder, f"{name}.png"))


CHOOSE = """(input, title) => {
  input.value = title;
  input.dispatchEvent(new InputEvent("input", { inputType: "insertReplacementText" }));
}"""
"""What a browser does when somebody chooses one of an input's titles."""


def test_a_search_is_launched_watched_explored_and_downloaded(chromium: Any, shared: Shared, tmp_path: Path) -> None:
    page, wrong = opened(chromium, shared, viewport={"width": 1280, "height": 860})
    assert TOKEN not in page.url
    shot(page, "1-searches")

    page.click("text=The whole config")
    page.fill("#config", json.dumps({**shared.config, "name": "from-the-page"}))
    page.locator("#config").blur()
    page.wait_for_selector("#estimate:has-text('small took')")
    page.click("#launch")
    page.wait_for_selector("#state:has-text('running')")
    shot(page, "2-running")
    page.wait_for_selector("#state:has-text('finished')")
    page.wait_for_selector("#download")
    search = page.url.rsplit("/", 1)[1]
    front = json.loads((shared.service.root / "searches" / search / "run" / "front.json").read_text())
    objectives = [Objective(**o) for o in front["objectives"]]
    values = [e["validation"] for e in front["front"]]
    names = [e["entry"] for e in front["front"]]
    assert page.inner_text("#selected") == names[decide.knee(values, objectives).index]

    page.locator("#weight-1").press("End")  # with the keyboard alone
    preferred = names[decide.prefer(values, objectives, {"ild@5": 10}).index]
    page.wait_for_selector(f"#selected:text-is('{preferred}')")

    for _ in range(40):
        page.locator("#bound-0").press("ArrowRight")
    bound = float(page.inner_text("#bound-0 + output").removeprefix("≥ "))
    kept = [i for i, v in enumerate(values) if Constraint("ndcg@5", True, bound).violation(v["ndcg@5"]) == 0]
    assert 0 < len(kept) < len(values)
    page.wait_for_selector(f"#kept:text-matches('^{len(kept)} entr.* of {len(names)} within')")
    within = [values[i] for i in kept]
    chosen = names[kept[decide.prefer(within, objectives, {"ild@5": 10}).index]]
    page.wait_for_selector(f"#selected:text-is('{chosen}')")
    assert page.locator("#entries tr.outside").count() == len(values) - len(kept)
    shot(page, "3-selected")

    other = next(name for name in names if name != chosen)
    page.click("#compare-selected")
    page.check(f"#compare-{other}")
    assert {chosen, other} <= set(page.inner_text("#compared thead").split())
    page.locator("#compared").scroll_into_view_if_needed()
    shot(page, "4-compared")
    page.wait_for_selector(f"#genealogy h2:text-is('Where {chosen.split('-')[0]} comes from')")

    with page.expect_download() as begun:
        page.click("#download")
    begun.value.save_as(tmp_path / "entry.zip")
    assert f"{chosen}/adapter_model.safetensors" in zipfile.ZipFile(tmp_path / "entry.zip").namelist()

    page.select_option("select >> nth=2", "novelty@5")
    page.wait_for_selector("#front-chart .gl-container canvas")
    page.goto(f"{shared.service.address}#/compare/{search},{shared.search}")
    page.wait_for_selector("h1:has-text('Fronts beside each other')")
    assert page.locator("tbody tr").count() == 2
    assert wrong == []


def test_bounds_are_drawn_and_the_lists_of_two_entries_stand_beside_each_other(chromium: Any, shared: Shared) -> None:
    page, wrong = opened(chromium, shared, viewport={"width": 1280, "height": 860})
    page.click(f"#open-{shared.search}")
    page.wait_for_selector("#selected")
    names = [e["entry"] for e in json.loads((shared.run / "front.json").read_text())["front"]]

    def axis() -> Any:
        found = page.locator(".brush").nth(2)
        found.scroll_into_view_if_needed()
        return found

    box = axis().bounding_box()
    middle = box["x"] + box["width"] / 2
    page.mouse.move(middle, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(middle, box["y"] + box["height"] + 20, steps=3)
    page.mouse.up()
    page.wait_for_selector("#bound-2 + output:text-matches('^≤ ')")
    page.wait_for_selector("#entries tr.outside")
    assert page.locator("#entries tr.outside").count() < len(names)
    axis().dblclick()
    page.wait_for_selector("#bound-2 + output:text-is('any')")

    for name in names[:2]:
        page.check(f"#compare-{name}")
    page.fill("#previews [name=user]", "u3")
    page.locator("#previews [name=user]").press("Enter")
    page.wait_for_selector("#previews ol.items >> nth=1")
    assert page.locator("#previews h3").all_inner_texts() == names[:2]
    assert page.locator("#previews li").count() == 20
    page.locator("#previews").scroll_into_view_if_needed()
    shot(page, "5-lists")

    found = []
    for words in ("7", "11"):
        page.fill("#previews-find", words)
        option = page.locator(f"#previews-find-titles option:first-child[value*='{words}']")
        option.wait_for(state="attached")
        title = option.get_attribute("value")
        before = page.input_value("#previews [name=history]")
        page.fill("#previews-find", title)
        assert page.input_value("#previews [name=history]") == before  # typed, it may be how a longer one begins
        page.locator("#previews-find").evaluate(CHOOSE, title)
        answer = shared.client.get(f"/v1/data/{shared.config['data']['source']}/items", params={"query": words})
        found.append(answer.json()["items"][0])
    assert page.input_value("#previews [name=history]") == ", ".join(i["item"] for i in found)
    assert page.inner_text("#previews .chosen") == ", ".join(i["title"] for i in found)
    page.locator("#previews [name=history]").press("Enter")
    page.wait_for_selector("#previews ol.items >> nth=1")
    page.fill("#previews [name=history]", page.input_value("#previews [name=history]") + ", new")
    page.locator("#previews [name=history]").press("Enter")
    page.wait_for_selector("#previews small:text-is('left out, since nobody knows them: new')")
    assert wrong == []

    page.click("#previews summary")
    for groups, told in (("artist", "names no group"), ("occupation=artist", "does not read the occupation")):
        page.fill("#previews [name=groups]", groups)
        page.locator("#previews [name=groups]").press("Enter")
        page.wait_for_selector(f":text('{told}')")


def test_an_entry_is_deployed_asked_tried_against_a_canary_and_rolled_back(chromium: Any, shared: Shared) -> None:
    page, wrong = opened(chromium, shared, viewport={"width": 1280, "height": 860})
    page.on("dialog", lambda dialog: dialog.accept())
    page.click(f"#open-{shared.search}")
    page.wait_for_selector("#selected")
    names = [e["entry"] for e in json.loads((shared.run / "front.json").read_text())["front"]]
    chosen = page.inner_text("#selected")
    other = next(name for name in names if name != chosen)

    page.click("#deploy")
    card = page.locator(".deployment")
    page.wait_for_selector(".deployment .state:text-is('serving')")
    card.locator("[name=user]").fill("u3")
    card.locator(".ask").click()
    page.wait_for_selector(f".deployment :text('answered by {chosen}')")
    assert card.locator("ol.items li").count() == 10
    shot(page, "6-deployed")

    page.select_option("[aria-label=Canary]", other)
    page.click(".try")
    page.wait_for_selector(f"tr:has-text('{other}'):has-text('a canary, 10 % of the users')")
    page.locator(".slider input").press("End")
    page.wait_for_selector("tr:has-text('a canary, 100 % of the users')")
    page.wait_for_selector(".deployment .state:text-is('serving')")
    card.locator(".ask").click()
    page.wait_for_selector(f".deployment :text('answered by {other}')")
    shot(page, "7-canary")
    third = next(name for name in names if name not in (chosen, other))
    for entry in (third, other):  # on trial too, another one is tried as soon as it is chosen
        page.select_option("[aria-label=Canary]", entry)
        page.wait_for_selector(f"tr:has-text('{entry}'):has-text('a canary, 100 % of the users')")
        page.wait_for_selector(".deployment .state:text-is('serving')")
    page.click("text=Promote the canary")
    page.wait_for_selector(f"tr:has-text('{other}'):has-text('everybody')")
    page.click("text=Roll back")
    page.wait_for_selector(f"tr:has-text('{chosen}'):has-text('everybody')")
    page.click(".deployment button:text-is('Delete')")
    page.wait_for_selector(".empty:has-text('Nothing is deployed')")
    assert wrong == []


def test_older_searches_are_shown_when_asked_for(chromium: Any, shared: Shared) -> None:
    record = Record(shared.service.root / "service.db")
    many = [f"old-{n:08d}" for n in range(230)]
    before = record.latest(0, 1)[0]
    try:
        for name in many:
            record.add_search(Job(name, "old", "small", "tiny", shared.config, "cancelled", "cancel"))
        page, wrong = opened(chromium, shared, viewport={"width": 1280, "height": 860})
        page.wait_for_selector(f"#older:text-is('Show older ones ({130 + before})')")
        assert page.locator(".card").count() == 100
        page.click("#older")
        page.wait_for_selector(f"#older:text-is('Show older ones ({30 + before})')")
        page.click("#older")
        page.wait_for_selector("#older", state="hidden")
        assert page.locator(".card").count() == len(many) + before
        assert page.locator(f"#open-{many[0]}").count() == 1
        assert wrong == []
    finally:
        for name in many:
            record.remove_search(name)
        record.close()


def test_it_fits_a_phone_in_the_dark_and_tells_who_has_no_token(chromium: Any, shared: Shared) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    page, wrong = opened(chromium, shared, **phone)
    page.click(f"#open-{shared.search}")
    page.wait_for_selector("#selected")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    shot(page, "8-phone")
    page.click("nav >> text=Deployments")
    page.wait_for_selector(".empty:has-text('press Deploy')")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert wrong == []

    stranger = chromium.new_context(**phone).new_page()
    stranger.goto(shared.service.address)
    stranger.fill("#token", "not the token")
    stranger.click("text=Go on")
    stranger.wait_for_selector("text=the token is missing or wrong")
    stranger.fill("#token", TOKEN)
    stranger.click("text=Go on")
    stranger.wait_for_selector("#launch")
