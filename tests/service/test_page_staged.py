"""The page before a service that the tests play: while searches go on, answers are lost and nobody answers."""

import json
from typing import Any

import pytest
from browser import SILENT, Stage, chromium, needs_browser

from pareto_search.service import answers

pytestmark = needs_browser
__all__ = ["chromium"]


def search(state: str = "running", finished: int | None = None, **others: Any) -> dict[str, Any]:
    """A search of six candidates, of which some may have finished."""
    counts = {"merged": 0, "failed": 0, "total": 6, "front": 3, "hypervolume": 0.5, "elapsed": 1.0, "left": None}
    told = {
        "id": "demo-1",
        "name": "demo",
        "data": "small",
        "base": "tiny",
        "state": state,
        "wish": "run",
        "error": None,
        "notice": None,
        "progress": None if finished is None else {"finished": finished, **counts},
        "created": 0.0,
        "config": {"name": "demo", "search": {"candidates": 6}},
    }
    return answers.SearchDetail(**told | others).model_dump(mode="json")


def listed(*searches: dict[str, Any]) -> dict[str, Any]:
    return {"total": len(searches), "offset": 0, "searches": list(searches)}


def front(count: int, *, final: bool = False, without: str = "") -> dict[str, Any]:
    """So many entries from accurate to diverse, c0000-s00 and so on."""
    entries = [
        {
            "entry": f"c{i:04d}-s00",
            "candidate": f"c{i:04d}",
            "kind": "trained",
            "validation": {"ndcg@5": 0.5 - i / 10, "ild@5": 0.1 + i / 10},
            "serving": {},
            "weighting": {},
            "genes": {},
        }
        for i in range(count)
    ]
    objectives = [{"name": name, "direction": "maximise", "reference": 0.0} for name in ("ndcg@5", "ild@5")]
    kept = [e for e in entries if e["entry"] != without]
    return {"objectives": objectives, "front": kept, "baselines": [], "curves": {}, "final": final}


def explored(**others: Any) -> dict[str, Any]:
    """What is said about a search that goes on and has three entries, the second of which is the knee."""
    selected = {"entry": {"entry": "c0001-s00"}, "reason": "the knee", "kept": [f"c{i:04d}-s00" for i in range(9)]}
    candidates = {
        f"GET /searches/demo-1/candidates/c{i:04d}": {
            "id": f"c{i:04d}",
            "kind": "trained",
            "parents": [],
            "ancestors": [],
        }
        for i in range(9)
    }
    return {
        "GET /searches/demo-1/events": search(finished=1),
        "GET /searches/demo-1/front": front(3),
        "GET /searches/demo-1/archive": {"total": 0, "offset": 0, "evaluations": []},
        "GET /deployments": {"deployments": []},
        "POST /searches/demo-1/select": selected,
        **candidates,
        **others,
    }


def at_home(*searches: dict[str, Any]) -> dict[str, Any]:
    """What the first view asks for."""
    return {
        "GET /data": {"data": [{"name": name, "origin": "upload", "facts": {}, "created": 0.0} for name in ("a", "b")]},
        "GET /bases": {"bases": ["tiny", "large"]},
        "GET /events": listed(*searches),
        "POST /estimate": {"seconds": None, "cpu_hours": None, "gpu_hours": None, "because": "nothing is known"},
    }


def focused(page: Any) -> str:
    found: str = page.evaluate("document.activeElement.id || document.activeElement.textContent")
    return found


def test_what_is_asked_for_again_because_no_answer_came_is_made_once(chromium: Any) -> None:
    stage = Stage(chromium, at_home() | explored() | {"POST /searches": SILENT, "POST /deployments": SILENT})
    page = stage.open()

    def keys(path: str) -> list[str]:
        return [request.headers["idempotency-key"] for request in stage.to(f"POST {path}")]

    def press(button: str, path: str, times: int) -> None:
        for _ in range(times):
            before = len(keys(path))
            with page.expect_request(f"**/v1{path}"):
                page.click(button)
            page.wait_for_selector(f"{button}:enabled")
            assert len(keys(path)) == before + 1

    press("#launch", "/searches", 2)
    page.fill("#launch-steps", "20")
    page.locator("#launch-steps").blur()
    press("#launch", "/searches", 1)
    stage.says["POST /searches"] = {"id": "demo-1"}
    page.click("#launch")
    page.wait_for_selector("#selected")
    first, again, other, made = keys("/searches")
    assert first == again != other == made

    page.click("nav >> text=Searches")
    page.fill("#launch-steps", "20")
    page.locator("#launch-steps").blur()
    page.click("#launch")
    page.wait_for_selector("#selected")
    assert keys("/searches")[-1] not in (first, other)  # it is wished once more, and that was answered

    stage.says |= {
        "GET /searches/demo-1/front": front(3, final=True),
        "GET /searches/demo-1/events": search("finished", 3),
    }
    press("#deploy", "/deployments", 2)
    first, again = keys("/deployments")
    assert first == again


def test_an_entry_that_somebody_has_picked_stays_while_it_is_on_the_front(chromium: Any) -> None:
    stage = Stage(chromium, explored())
    page = stage.open("search/demo-1")
    page.wait_for_selector("#selected:text-is('c0001-s00')")
    page.click("#pick-c0002-s00")
    page.wait_for_selector("#selected:text-is('c0002-s00')")
    page.locator("#selection [aria-live]").evaluate(
        "told => new MutationObserver(() => (window.read = true)).observe(told, { childList: true, subtree: true })"
    )
    stage.says |= {"GET /searches/demo-1/front": front(4), "GET /searches/demo-1/events": search(finished=2)}
    page.wait_for_selector("#pick-c0003-s00")
    assert page.inner_text("#selected") == "c0002-s00"
    assert page.inner_text("#selection .reason") == "your own choice"
    assert page.evaluate("window.read") is None  # it is not read out once more

    for move in (lambda: page.locator("#weight-0").press("ArrowRight"), lambda: page.click("#reset")):
        page.click("#pick-c0002-s00")
        page.wait_for_selector("#selected:text-is('c0002-s00')")
        move()
        page.wait_for_selector("#selected:text-is('c0001-s00')")

    page.click("#pick-c0002-s00")
    page.wait_for_selector("#selected:text-is('c0002-s00')")
    left = {
        "GET /searches/demo-1/front": front(4, without="c0002-s00"),
        "GET /searches/demo-1/events": search(finished=3),
    }
    stage.says |= left
    page.wait_for_selector("#selected:text-is('c0001-s00')")


def test_whoever_watches_is_told_of_trouble_until_the_next_event(chromium: Any) -> None:
    stage = Stage(chromium, at_home(search()))
    page = stage.open()
    page.wait_for_selector("#open-demo-1")
    for status, told in ((SILENT, "does not answer"), (507, "refused with 507")):
        stage.says["GET /events"] = status
        page.wait_for_selector(f"#trouble:has-text('{told}')")
    stage.says["GET /events"] = listed(search(name="renamed"))
    page.wait_for_selector("#open-demo-1:text-is('renamed')")
    assert page.inner_text("#trouble") == ""

    stage.says["GET /searches/demo-1/events"] = 507
    page.click("#open-demo-1")
    page.wait_for_selector("#trouble:has-text('refused with 507')")
    stage.says |= explored() | {"GET /searches/demo-1/front": 507}
    page.wait_for_selector("#state:text-is('running')")
    page.wait_for_selector("#trouble:has-text('refused with 507')")
    stage.says |= explored()
    page.wait_for_selector("#selected")
    page.wait_for_selector("#trouble:empty", state="attached")

    stage.says["GET /deployments/events"] = {"deployments": None}
    page.click("nav >> text=Deployments")
    page.wait_for_selector("#trouble:has-text('null')")  # a mistake of the page itself


def test_what_a_button_was_refused_is_not_taken_back_by_an_event(chromium: Any) -> None:
    stage = Stage(chromium, explored() | {"POST /searches/demo-1/pause": 409})
    page = stage.open("search/demo-1")
    page.click("text=Pause")
    page.wait_for_selector("#trouble:has-text('refused with 409')")
    stage.says["GET /searches/demo-1/events"] = search(finished=2)
    page.wait_for_selector("text=2 of 6 candidates")
    assert "refused with 409" in page.inner_text("#trouble")


@pytest.mark.parametrize("state", ["paused", "failed", "cancelled"])
def test_a_search_that_has_not_begun_says_how_it_stands(chromium: Any, state: str) -> None:
    stage = Stage(chromium, {"GET /searches/demo-1/events": search("queued"), "GET /searches/demo-1/front": 409})
    page = stage.open("search/demo-1")
    page.wait_for_selector(".empty:has-text('It waits for its turn')")
    stage.says["GET /searches/demo-1/events"] = search("running")
    page.wait_for_selector(".empty:has-text('It is being prepared')")
    stage.says["GET /searches/demo-1/events"] = search(state)
    page.wait_for_selector(
        f".empty:has-text('It was {state} before it began')"
        if state != "failed"
        else ".empty:has-text('It failed before it began')"
    )


def test_the_form_follows_the_config_that_somebody_edits(chromium: Any) -> None:
    page = Stage(chromium, at_home()).open()
    page.click("text=The whole config")
    assert json.loads(page.input_value("#config"))["search"]["minutes"] == 7
    edited = {"name": "mine", "data": {"source": "b"}, "model": {"base": "large"}, "search": {"candidates": 40}}
    page.fill("#config", json.dumps(edited))
    page.locator("#config").blur()
    shown = [page.input_value(f"#launch-{key}") for key in ("name", "candidates", "minutes", "count")]
    assert shown == ["mine", "40", "", ""]
    assert [page.input_value(f"label:has-text('{label}') select") for label in ("Data", "Base model")] == ["b", "large"]

    page.fill("#launch-count", "3")
    page.locator("#launch-count").blur()
    assert json.loads(page.input_value("#config")) == edited | {"workers": {"count": 3}}
    page.fill("#launch-candidates", "")
    page.locator("#launch-candidates").blur()
    assert json.loads(page.input_value("#config")) == edited | {"search": {}, "workers": {"count": 3}}
    page.fill("#config", "[")
    page.locator("#config").blur()
    page.wait_for_selector("#estimate:has-text('The config is no JSON')")
    assert page.input_value("#launch-name") == "mine"


def test_the_keyboard_stays_where_it_is_while_a_search_goes_on(chromium: Any) -> None:
    stage = Stage(chromium, explored() | {"POST /searches/demo-1/pause": 409})
    page = stage.open("search/demo-1")
    page.wait_for_selector("#selected")
    page.click("text=Config")
    for number, place in enumerate(["#compare-selected", "text=Pause", "#pick-c0000-s00"], start=2):
        page.locator(place).focus()
        before = focused(page)
        stage.says |= {
            "GET /searches/demo-1/front": front(2 + number),
            "GET /searches/demo-1/events": search(finished=number),
        }
        page.wait_for_selector(f"#pick-c{1 + number:04d}-s00")
        assert focused(page) == before
    assert page.locator("details:has-text('Config') pre").is_visible()
    page.locator("text=Pause").press("Enter")
    page.wait_for_selector("#trouble:has-text('refused with 409')")
    assert focused(page) == "Pause"


def deployed(share: float, error: str | None = None) -> dict[str, Any]:
    """A deployment with a canary for a share of the users."""
    return answers.Deployment(
        id="demo-1",
        search="demo-1",
        data="small",
        state="serving",
        error=error,
        entries=["c0000-s00"],
        canary=answers.Canary(entry="c0001-s00", share=share),
        earlier=0,
        endpoint="http://127.0.0.1:1/recommend",
        answers={},
        created=0.0,
    ).model_dump(mode="json")


def test_a_deployment_that_could_not_be_changed_is_begun_anew_on_demand(chromium: Any) -> None:
    says = {
        "GET /deployments/events": {"deployments": [deployed(0.1)]},
        "GET /deployments/demo-1": deployed(0.1) | {"token": "t", "objectives": []},
        "GET /searches/demo-1/front": front(3, final=True),
        "POST /deployments/demo-1/restart": deployed(0.1),
    }
    stage = Stage(chromium, says)
    page = stage.open("deployments")
    page.wait_for_selector("#promote-demo-1")
    assert not page.locator("#restart-demo-1").count()
    stage.says["GET /deployments/events"] = {"deployments": [deployed(0.1, "the data is not there")]}
    page.wait_for_selector("text=the data is not there")
    page.click("#restart-demo-1")
    page.wait_for_function("() => !document.querySelector('#restart-demo-1')?.disabled")
    assert len(stage.to("POST /deployments/demo-1/restart")) == 1
    stage.says["GET /deployments/events"] = {"deployments": [deployed(0.1)]}
    page.wait_for_selector("#restart-demo-1", state="detached")


def test_a_share_is_moved_with_the_keyboard_and_told_step_by_step(chromium: Any) -> None:
    def tried(canary: dict[str, Any]) -> Any:
        if canary["share"] > 0.5:
            return 409
        stage.says["GET /deployments/events"] = {"deployments": [deployed(canary["share"])]}
        return deployed(canary["share"])

    says = {
        "GET /deployments/events": {"deployments": [deployed(0.1)]},
        "GET /deployments/demo-1": deployed(0.1) | {"token": "t", "objectives": []},
        "GET /searches/demo-1/front": front(3, final=True),
        "PUT /deployments/demo-1/canary": tried,
    }
    stage = Stage(chromium, says)
    page = stage.open("deployments")
    share = page.locator("#share-demo-1")
    share.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("tr:has-text('a canary, 30 % of the users')")
    assert (focused(page), share.input_value()) == ("share-demo-1", "30")
    assert stage.to("PUT /deployments/demo-1/canary")[-1].post_data_json == {"entry": "c0001-s00", "share": 0.3}
    page.keyboard.press("End")
    page.wait_for_selector("#trouble:has-text('refused with 409')")
    assert (focused(page), share.input_value()) == ("share-demo-1", "30")
    page.keyboard.press("Tab")
    stage.says["GET /deployments/events"] = {"deployments": [deployed(0.5)]}  # somebody else moves it
    page.wait_for_selector("tr:has-text('a canary, 50 % of the users')")
    assert share.input_value() == "50"


def test_states_are_read_out_when_they_change_and_progress_is_not(chromium: Any) -> None:
    stage = Stage(chromium, at_home(search("queued")))
    page = stage.open()
    page.wait_for_selector("#open-demo-1")
    assert page.locator("#searches").evaluate("list => list.closest('[aria-live]')") is None
    assert page.inner_text("#said") == ""
    stage.says["GET /events"] = listed(search("running"))
    page.wait_for_selector("#said:text-is('demo is running.')")
    page.locator("#said").evaluate(
        "said => new MutationObserver(() => (window.read = true)).observe(said, { childList: true })"
    )
    stage.says["GET /events"] = listed(search("running", 2))
    page.wait_for_selector("text=2 of 6 candidates")
    assert page.evaluate("window.read") is None
