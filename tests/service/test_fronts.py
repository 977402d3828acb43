import io
import json
import signal
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Shared
from running import eventually

from pareto_search import decide, entry
from pareto_search.errors import RunError
from pareto_search.objective import Constraint, Objective
from pareto_search.question import Question
from pareto_search.service.packing import packed
from pareto_search.service.previewer import answered
from pareto_search.service.previews import Previews
from pareto_search.service.record import UnansweredError
from pareto_search.store import Store


@pytest.fixture(scope="module")
def written(shared: Shared) -> Any:
    """What the search itself has written."""
    return json.loads((shared.run / "front.json").read_text())


@pytest.fixture(scope="module")
def store(shared: Shared) -> Store:
    return Store.open(shared.run / "search.db")


def test_the_front_is_that_of_the_run_folder(shared: Shared, written: Any) -> None:
    assert shared.get("/front") == {**written, "final": True}


def test_baselines_come_with_the_curves(shared: Shared, written: Any) -> None:
    assert shared.get("/baselines") == {"baselines": written["baselines"], "curves": written["curves"]}


def test_the_archives_pages_are_all_evaluations_once_and_in_order(shared: Shared, store: Store) -> None:
    expected = [(e.entry, e.attempt, e.steps, dict(e.values)) for e in store.evaluations()]
    found: list[Any] = []
    while page := shared.get("/archive", offset=len(found), limit=30)["evaluations"]:
        assert len(page) <= 30
        found += page
    assert [(e["entry"], e["attempt"], e["steps"], e["values"]) for e in found] == expected
    assert shared.get("/archive")["total"] == len(expected)


def test_a_candidate_has_its_line_of_descent(shared: Shared, store: Store) -> None:
    known = {c.id: c for c in store.candidates()}
    child = next(c for c in reversed(known.values()) if c.parents)
    found = shared.get(f"/candidates/{child.id}")
    line = {a["id"] for a in found["ancestors"]}
    assert set(child.parents) <= line
    assert line == {p for name in (child.id, *line) for p in known[name].parents}
    assert {e["candidate"] for e in found["evaluations"]} == {child.id}


def test_selection_is_what_the_command_line_would_select(shared: Shared, written: Any) -> None:
    objectives = [Objective(**o) for o in written["objectives"]]
    values = [e["validation"] for e in written["front"]]

    def selected(**wish: Any) -> tuple[str, str]:
        answer = shared.client.post(f"/v1/searches/{shared.search}/select", json=wish)
        assert answer.status_code == 200, answer.text
        return answer.json()["entry"]["entry"], answer.json()["reason"]

    def expected(choice: decide.Choice) -> tuple[str, str]:
        return written["front"][choice.index]["entry"], choice.reason

    middle = sorted(v["ndcg@5"] for v in values)[len(values) // 2]
    bound = f"ndcg@5>={middle}"
    assert selected() == expected(decide.knee(values, objectives))
    assert selected(prefer={"ild@5": 3}) == expected(decide.prefer(values, objectives, {"ild@5": 3}))
    constraints = [Constraint.parse(bound)]
    assert selected(where=[bound], best="ild@5") == expected(decide.where(values, objectives, constraints, "ild@5"))


def test_preferences_choose_among_the_entries_within_the_bounds(shared: Shared, written: Any) -> None:
    values = {e["entry"]: e["validation"] for e in written["front"]}
    middle = sorted(v["ndcg@5"] for v in values.values())[len(values) // 2]
    wish = {"where": [f"ndcg@5>={middle}"], "prefer": {"ild@5": 1}}
    found = shared.client.post(f"/v1/searches/{shared.search}/select", json=wish).json()
    within = {name for name, v in values.items() if v["ndcg@5"] >= middle}
    assert set(found["kept"]) == within
    assert found["entry"]["validation"]["ild@5"] == max(values[name]["ild@5"] for name in within)


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"prefer": {"ndgc@5": 1}}, "did you mean 'ndcg@5'?"),
        ({"prefer": {"\ud800": 1}}, r"'\ud800' is no objective"),
        ({"where": ["ndcg@5>=2"]}, "no entry keeps ndcg@5 >= 2"),
        ({"where": ["ndcg@5"]}, "is not of the form"),
        ({"best": "ild@5", "prefer": {"ild@5": 1}}, "give one of them"),
    ],
)
def test_a_wish_that_does_not_fit_gets_one_line(shared: Shared, wish: Any, complaint: str) -> None:
    # As ASCII, in which JSON writes also what UTF-8 does not have.
    content, headers = json.dumps(wish), {"Content-Type": "application/json"}
    answer = shared.client.post(f"/v1/searches/{shared.search}/select", content=content, headers=headers)
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]


@pytest.mark.parametrize("kind", ["pair", "pairwise", "parallel", "timeline"])
def test_plots_come_as_plotlys_json(shared: Shared, kind: str) -> None:
    figure = shared.get(f"/plots/{kind}")
    assert figure["data"]
    assert figure["layout"]["title"]["text"]


def test_what_has_recorded_something_is_compared_and_each_search_once(shared: Shared, written: Any) -> None:
    assert shared.client.get("/v1/compare", params={"search": shared.search}).status_code == 422
    again = shared.client.post("/v1/searches", json={**shared.config, "name": "again"}).json()["id"]
    waits = shared.client.get("/v1/compare", params={"search": [shared.search, again]})
    assert waits.status_code == 409  # it has recorded nothing yet
    shared.client.post(f"/v1/searches/{again}/cancel")
    found = shared.client.get("/v1/compare", params={"search": [shared.search, shared.search]}).json()
    mine = {part: written["hypervolume"][part] for part in ("validation", "test")}
    assert [s["hypervolume"] for s in found["searches"]] == [pytest.approx(mine)]


def test_a_download_is_the_exported_entry(shared: Shared, written: Any, tmp_path: Path) -> None:
    name = written["front"][0]["entry"]
    answer = shared.client.get(f"/v1/searches/{shared.search}/entries/{name}/zip")
    assert answer.headers["content-type"] == "application/zip"
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    there = entry.of_folder(tmp_path / name)
    here = entry.of_run(shared.run, name)
    assert (there.name, dict(there.serving)) == (here.name, dict(here.serving))
    assert {k: v for k, v in there.files.items() if k != "manifest.json"} == dict(here.files)


def test_a_download_in_another_format_is_what_export_writes(shared: Shared, written: Any, tmp_path: Path) -> None:
    name = written["front"][0]["entry"]
    answer = shared.client.get(f"/v1/searches/{shared.search}/entries/{name}/zip", params={"format": "onnx"})
    assert answer.status_code == 200, answer.text
    assert f'filename="{shared.search}-{name}-onnx.zip"' in answer.headers["content-disposition"]
    found = set(zipfile.ZipFile(io.BytesIO(answer.content)).namelist())
    assert {f"{name}/{file}" for file in ("README.md", "entry/serving.json")} <= found
    assert any(file.endswith(".onnx") for file in found)
    unknown = shared.client.get(f"/v1/searches/{shared.search}/entries/{name}/zip", params={"format": "exe"})
    assert (unknown.status_code, set(unknown.json())) == (422, {"error"})


def test_an_export_that_ends_before_its_time_is_no_mistake_of_who_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "front.json").write_text('{"front": [{"entry": "c0000-s00"}]}')  # and nothing else of a run
    with pytest.raises(UnansweredError) as caught:
        packed(tmp_path, "c0000-s00", "adapter")
    assert str(tmp_path) not in str(caught.value)
    assert f"{tmp_path} holds no search" in capsys.readouterr().err


def test_a_preview_whose_process_ends_or_errs_is_no_mistake_of_who_asks(tmp_path: Path) -> None:
    previews = Previews()
    ask = partial(previews.recommend, tmp_path / "file", "c0000-s00", Question(user="u1"))
    (tmp_path / "file").touch()  # where a folder is expected
    child = previews._started()
    child.send_signal(signal.SIGSTOP)
    with closing(previews), ThreadPoolExecutor(1) as thread:
        asked = thread.submit(ask)
        eventually(lambda: previews._end is not None)  # from here on it waits for the answer
        child.kill()
        with pytest.raises(UnansweredError, match="has ended"):
            asked.result()
        with pytest.raises(UnansweredError, match="a mistake of this program, NotADirectoryError"):
            ask()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/candidates/c9999", 404),
        ("/entries/c9999-s00/zip", 404),
        ("/entries/..%2F..%2Fservice.db/zip", 404),
        ("/plots/pie", 422),
    ],
)
def test_what_is_not_there_is_refused(shared: Shared, path: str, status: int) -> None:
    answer = shared.client.get(f"/v1/searches/{shared.search}{path}")
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}


def test_a_question_to_a_search_that_has_gone_on_since_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has gone on since you asked"):
        answered(tmp_path, "c0000-s00", Question(user="1"))


def test_an_estimate_counts_the_hours_of_all_workers(shared: Shared) -> None:
    wish = {**shared.config, "search": {**shared.config["search"], "candidates": 10}}
    wish["workers"] = {"count": 3, "cpus": 0.5, "gpus": 2}
    found = shared.client.post("/v1/estimate", json=wish).json()
    hours = 3 * found["seconds"] / 3600
    assert hours > 0
    assert (found["cpu_hours"], found["gpu_hours"]) == pytest.approx((0.5 * hours, 2 * hours))
    wish["search"]["minutes"] = 0.01
    assert shared.client.post("/v1/estimate", json=wish).json()["seconds"] == pytest.approx(0.6)
