"""How long a search will take, by one whose times are made up."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pareto_search import store as stores
from pareto_search.candidate import Attempt, Candidate, Evaluation
from pareto_search.config import SearchConfig
from pareto_search.service.estimate import estimate
from pareto_search.store import SearchRecord, Store


def config(*, count: int = 2, **search: Any) -> SearchConfig:
    wish = {"name": "old", "data": {"source": "films"}, "search": search, "workers": {"count": count}}
    return SearchConfig.parse(wish)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder of a search that was prepared for 60 seconds, in whose midst the first towers ran. Then two
    workers took 400 seconds to train four candidates for 20 steps.
    """
    run, steps = tmp_path / "old", 20
    run.mkdir()
    (run / "search.yaml").write_text(config(steps=steps).to_yaml())
    record = SearchRecord("old", "i", "c", 0, "d", "s", "b", "b", lanes=2, created=1000.0)
    with closing(Store.create(run / "search.db", record)) as store:
        for name, kind, began in [
            ("e0000", "early", 1030.0),
            ("m0000", "merged", 1060.0),
            *((f"c{n:04d}", "trained", 1065.0 + 100 * n) for n in range(4)),
        ]:
            monkeypatch.setattr(stores, "time", SimpleNamespace(time=lambda began=began: began))
            attempt = Attempt(Candidate(name, {}, (), kind))
            with store.transaction() as changes:
                changes.decided("ask", attempt.candidate, steps)
                changes.started(attempt, "w")
                changes.finished(attempt, [Evaluation(name, 1, steps, 0, {}, {"ndcg@10": 0.1})], 1.0)
        with store.transaction() as changes:
            changes.add_elapsed(460.0)
    return run


@pytest.mark.parametrize(
    ("candidates", "steps", "count", "seconds"),
    [(4, 20, 2, 460), (10, 20, 2, 1060), (10, 40, 2, 2060), (10, 20, 4, 560), (10, 60, 4, 1560)],
    ids=["the same", "more candidates", "twice the steps", "twice the workers", "more of all"],
)
def test_an_estimate_is_in_proportion_to_candidates_steps_and_workers(
    old: Path, candidates: int, steps: int, count: int, seconds: float
) -> None:
    found, because = estimate(config(count=count, candidates=candidates, steps=steps), [old])
    assert found == pytest.approx(seconds)
    assert because == "old took 100.0 s a candidate"


def test_a_budget_of_minutes_is_an_estimate_where_it_ends_sooner(old: Path) -> None:
    assert estimate(config(candidates=10, steps=20, minutes=20), [old])[0] == pytest.approx(1060)
    assert estimate(config(candidates=10, steps=20, minutes=10), [old])[0] == 600
    assert estimate(config(minutes=10), [])[0] == 600


def test_an_estimate_makes_nothing_of_a_config_that_is_refused_by_now(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("{name: old, data: {source: films}, colour: red}")
    seconds, because = estimate(config(), [tmp_path])
    assert seconds is None
    assert because.startswith("nothing like it has come far enough")


def test_an_estimate_asks_an_earlier_search_where_the_latest_has_just_begun(old: Path, tmp_path: Path) -> None:
    assert estimate(config(candidates=4, steps=20), [tmp_path / "latest", old])[0] == pytest.approx(460)
