"""Looks at a search that goes on, on both databases: what was kept in mind never answers for what is there now."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pareto_search import archive, results
from pareto_search.candidate import Attempt, Candidate, Evaluation
from pareto_search.config import SearchConfig
from pareto_search.errors import ConfigError
from pareto_search.service import view as views
from pareto_search.service.record import ConflictError
from pareto_search.service.view import View, Views, compare
from pareto_search.store import SearchRecord, Store

OBJECTIVES = [
    {"metric": "ndcg@10", "reference": 0.0, "ideal": 1.0},
    {"metric": "ild@10", "reference": 0.0, "ideal": 1.0},
]


@pytest.fixture
def config(where: str) -> SearchConfig:
    store = where if "://" in where else None
    content = {"name": "growing", "data": {"source": "nowhere"}, "objectives": OBJECTIVES, "store": store}
    return SearchConfig.parse(content)


@pytest.fixture
def store(config: SearchConfig, tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "search.yaml").write_text(config.to_yaml())
    record = SearchRecord("growing", config.identity(), "", 0, "d", "s", "b", "b", lanes=1)
    store = Store.create(config.store or tmp_path / "search.db", record)
    yield store
    store.close()


def finish(store: Store, config: SearchConfig, name: str, number: int, *points: tuple[float, float]) -> None:
    attempt, steps = Attempt(Candidate(name, {"rank": 8}), number), config.search.steps
    scored = [
        Evaluation(name, number, steps, setting, {}, {"ndcg@10": accuracy, "ild@10": diversity})
        for setting, (accuracy, diversity) in enumerate(points)
    ]
    with store.transaction() as record:
        if number == 1:
            record.decided("ask", attempt.candidate, steps)
        record.started(attempt, "w")
        record.finished(attempt, scored, 1.0)


def front(view: View) -> dict[str, tuple[float, float]]:
    told = json.loads(view.front_json())
    assert told == view.front()
    return {e["entry"]: tuple(e["validation"].values()) for e in told["front"]}


def test_every_look_shows_what_was_recorded_before_it(store: Store, config: SearchConfig, tmp_path: Path) -> None:
    view = View(tmp_path)
    assert front(view) == {}
    finish(store, config, "c0000", 1, (0.5, 0.5), (0.9, 0.1))
    assert front(view) == {"c0000-s00": (0.5, 0.5), "c0000-s01": (0.9, 0.1)}
    finish(store, config, "c0001", 1, (0.6, 0.6))
    assert front(view) == {"c0001-s00": (0.6, 0.6), "c0000-s01": (0.9, 0.1)}
    finish(store, config, "c0001", 2, (0.2, 0.2))  # a retry takes the place of what dominated
    assert front(view) == {"c0000-s00": (0.5, 0.5), "c0000-s01": (0.9, 0.1)}
    assert view.archive(0, 10)[1] == store.evaluations()
    for curve in ([], [{"name": "ease", "validation": {}}]):  # the same fact, twice
        with store.transaction() as record:
            record.put_fact("curves", {"practitioner": curve})
        assert view.front()["curves"] == {"practitioner": curve}
    (tmp_path / results.FRONT).write_text('{"front": []}')
    assert view.front() == {"front": [], "final": True}
    (tmp_path / results.FRONT).unlink()  # it goes on
    assert view.front()["final"] is False
    view.close()


def test_what_the_first_towers_dominated_is_back_when_the_warm_start_is_there(
    store: Store, config: SearchConfig, tmp_path: Path
) -> None:
    view = View(tmp_path)
    finish(store, config, "e0000", 1, (0.5, 0.5))
    assert front(view) == {"e0000-s00": (0.5, 0.5)}
    finish(store, config, "c0001", 1, (0.4, 0.4))
    assert front(view) == {"e0000-s00": (0.5, 0.5)}
    finish(store, config, "m0000", 1, (0.6, 0.2))
    assert front(view) == {"c0001-s00": (0.4, 0.4), "m0000-s00": (0.6, 0.2)}
    view.close()


def test_many_small_steps_end_at_the_front_of_all(store: Store, config: SearchConfig, tmp_path: Path) -> None:
    view = View(tmp_path)
    for n in range(30):
        finish(store, config, f"c{n:04d}", 1, (n * 7 % 30 / 30, n * 11 % 30 / 30), (n * 13 % 30 / 30, n * 17 % 30 / 30))
        front(view)
    whole = archive.front(store.evaluations(), config.objectives, (), config.search.steps)
    assert set(front(view)) == {e.entry for e in results.chosen(whole, config.objectives)}
    view.close()


def test_ten_thousand_evaluations_are_read_once(
    store: Store, config: SearchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        finish(store, config, f"c{n:04d}", 1, *((n / 5 + s / 10_000, 1 - s / 2000) for s in range(2000)))
    read: list[int] = []
    after = Store.evaluations_after

    def counted(store: Store, position: int) -> Any:
        found = after(store, position)
        read.append(len(found[1]))
        return found

    monkeypatch.setattr(Store, "evaluations_after", counted)
    view = View(tmp_path)
    for _ in range(200):
        view.front_json()
    finish(store, config, "c0005", 1, (0.99, 0.99))
    view.front_json()
    assert read == [10_000, 1]
    view.close()


def test_a_search_that_has_not_begun_is_looked_at_again(where: str, config: SearchConfig, tmp_path: Path) -> None:
    jobs: Any = SimpleNamespace(run=lambda name: tmp_path / name)
    look = Views(jobs)
    for prepare in (lambda run: None, Path.mkdir, lambda run: write(run, config)):
        prepare(tmp_path / "s")
        with pytest.raises(ConflictError, match="has not begun"):
            look("s").front()
    record = SearchRecord("growing", config.identity(), "", 0, "d", "s", "b", "b", lanes=1)
    Store.create(config.store or tmp_path / "s" / "search.db", record).close()
    assert look("s").front()["search"] == "growing"
    assert look("s") is look("s")


def write(run: Path, config: SearchConfig) -> None:
    (run / "search.yaml").write_text(config.to_yaml())


def test_only_so_many_searches_are_kept_in_mind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = SearchConfig.parse({"name": "s", "data": {"source": "nowhere"}, "objectives": OBJECTIVES})
    closed: list[str] = []
    monkeypatch.setattr(views, "KEPT", 2)
    monkeypatch.setattr(View, "close", lambda view: closed.append(view._run.name))
    jobs: Any = SimpleNamespace(run=lambda name: tmp_path / name)
    look = Views(jobs)
    for name in ("a", "b", "a", "c"):
        (tmp_path / name).mkdir(exist_ok=True)
        write(tmp_path / name, config)
        look(name)
    assert closed == ["b"]


def scaled(name: str, ideal: float = 1.0) -> dict[str, Any]:
    return {"name": name, "direction": "maximise", "reference": 0.0, "ideal": ideal}


def point(validation: dict[str, float], test: dict[str, float]) -> dict[str, Any]:
    return {"entry": "c0001-s00", "validation": validation, "test": {n: {"mean": mean} for n, mean in test.items()}}


def test_fronts_are_compared_by_the_objectives_that_all_of_them_have() -> None:
    old = {
        "search": "old",
        "data_sha256": "d",
        "objectives": [scaled("ndcg@10"), scaled("novelty@10"), scaled("ild@10")],
        "front": [
            point({"ndcg@10": 0.5, "novelty@10": 0.1, "ild@10": 0.4}, {"ndcg@10": 0.4, "ild@10": 0.4}),
            point({"ndcg@10": 0.2, "novelty@10": 0.9, "ild@10": 0.8}, {"ndcg@10": 0.2, "ild@10": 0.6}),
        ],
        "final": True,
    }
    new = {
        "search": "new",
        "objectives": [scaled("ild@10"), scaled("ndcg@10"), scaled("novelty@10", ideal=2.0)],
        "front": [point({"ndcg@10": 0.5, "novelty@10": 0.9, "ild@10": 0.5}, {})],
        "final": False,
    }
    found = compare({"a": old, "b": new})
    assert [o["name"] for o in found["objectives"]] == ["ndcg@10", "ild@10"]
    first, second = found["searches"]
    # By hand: two rectangles, less what both cover.
    volumes = {"validation": 0.5 * 0.4 + 0.2 * 0.8 - 0.2 * 0.4, "test": 0.4 * 0.4 + 0.2 * 0.6 - 0.2 * 0.4}
    assert first["hypervolume"] == pytest.approx(volumes)
    assert second["hypervolume"] == pytest.approx({"validation": 0.25})  # it goes on, and nobody has looked at test
    assert [(s["id"], s["name"], s["data_sha256"]) for s in (first, second)] == [("a", "old", "d"), ("b", "new", None)]


def test_fronts_with_one_objective_in_common_are_not_compared() -> None:
    old, new = (
        {"search": "s", "objectives": [scaled("ndcg@10"), scaled("ild@10", ideal)], "front": [], "final": False}
        for ideal in (1.0, 2.0)
    )
    with pytest.raises(ConfigError, match="share fewer than two objectives with the same reference and ideal"):
        compare({"a": old, "b": new})
